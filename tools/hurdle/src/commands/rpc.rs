//! `hurdle rpc`: lists interfaces and calls, and calls anything, also what this binary has never heard of.

use std::process::ExitCode;

use hurdle_wire::{Connection, Description, call_text, describe};

use super::look;
use crate::failure::Failure;
use crate::output;
use crate::progress;

pub(crate) fn rpc(env: &str, call: Option<&str>, arguments: &[String], json: bool) -> Result<ExitCode, Failure> {
    let Some(call) = call else { return interfaces(env, json) };
    let (interface, name) = match call.split_once('.') {
        Some((interface, name)) => (interface, Some(name)),
        None => (call, None),
    };
    let connection = if interface == "core" {
        look::find(env)?.connection().clone()
    } else {
        Connection::new(look::server(env, interface)?)
    };
    if name.is_none() {
        let described = waiting(call, || describe(&connection)).map_err(|e| look::failed(env, interface, call, &e))?;
        if json {
            return output::json(&described);
        }
        return output::print(described.iter().map(text_of).collect::<String>());
    }
    // A word that is no JSON is meant as a string.
    let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::from(text.as_str()));
    let text = serde_json::Value::from_iter(arguments.iter().map(value)).to_string();
    let answer = waiting(call, || call_text(&connection, call, &text));
    output::line(answer.map_err(|e| look::failed(env, interface, call, &e))?)
}

fn waiting<T>(call: &str, ask: impl FnOnce() -> T) -> T {
    progress::during(&format!("waiting for {call}"), ask)
}

fn interfaces(env: &str, json: bool) -> Result<ExitCode, Failure> {
    let info = look::find(env)?.info().wait().map_err(|e| Failure::call(env, &e))?;
    let names: Vec<&str> =
        ["core"].into_iter().chain(info.rights.iter().map(|right| right.interface.as_str())).collect();
    if json {
        return output::json(&names);
    }
    output::line(names.join("\n"))
}

fn text_of(interface: &Description) -> String {
    let indented = |text: &str, depth: usize| text.trim().replace('\n', &format!("\n{:depth$}", ""));
    let mut text = format!("{} = {}\n    {}\n", interface.name, interface.number, indented(&interface.doc, 4));
    for call in &interface.calls {
        let mark = if call.oneway {
            "oneway "
        } else if call.idempotent {
            "idempotent "
        } else {
            ""
        };
        text.push_str(&format!("{:3} {mark}{call}\n        {}\n", call.number, indented(&call.doc, 8)));
    }
    text
}
