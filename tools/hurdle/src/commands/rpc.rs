//! `hurdle rpc`: lists interfaces and calls, and calls anything, also what this binary has never heard of.

use std::process::ExitCode;

use hurdle_wire::{Connection, Description, call_text, describe};

use super::look;
use crate::failure::Failure;
use crate::output;

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
        let described = describe(&connection).map_err(|e| Failure::call(&format!("{env}, {interface}"), &e))?;
        if json {
            return output::json(&described);
        }
        described.iter().for_each(print);
        return Ok(ExitCode::SUCCESS);
    }
    // A word that is no JSON is meant as a string.
    let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::from(text.as_str()));
    let text = serde_json::Value::from_iter(arguments.iter().map(value)).to_string();
    println!("{}", call_text(&connection, call, &text).map_err(|e| Failure::call(call, &e))?);
    Ok(ExitCode::SUCCESS)
}

fn interfaces(env: &str, json: bool) -> Result<ExitCode, Failure> {
    let info = look::find(env)?.info().wait().map_err(|e| Failure::call(env, &e))?;
    let names: Vec<&str> =
        ["core"].into_iter().chain(info.rights.iter().map(|right| right.interface.as_str())).collect();
    if json {
        return output::json(&names);
    }
    names.iter().for_each(|name| println!("{name}"));
    Ok(ExitCode::SUCCESS)
}

fn print(interface: &Description) {
    println!("{} = {}\n    {}", interface.name, interface.number, interface.doc.trim().replace('\n', "\n    "));
    for call in &interface.calls {
        let mark = if call.oneway {
            "oneway "
        } else if call.idempotent {
            "idempotent "
        } else {
            ""
        };
        println!("{:3} {mark}{call}", call.number);
        println!("        {}", call.doc.trim().replace('\n', "\n        "));
    }
}
