//! Calls are reported to who traces, from the server's end, or from the client's where that end was asked to.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use common::{Demo, demo, other, serve_on};
use hurdle_wire::tap::{Event, Kind, Tap};
use hurdle_wire::{Channel, Connection, Peer, ServeOptions, call_text, describe};

/// A client of a server that reports to the tap, and what it reports.
fn traced(tap: &Tap) -> (Connection, BufReader<File>) {
    let (reader, writer) = hurdle_sys::process::pipe().unwrap();
    tap.add(1, writer).unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    let peer = Peer { pid: std::process::id(), uid: 7, ..Peer::default() };
    serve_on(theirs, Demo::default(), ServeOptions { peer, tap: tap.clone(), ..ServeOptions::default() });
    (Connection::new(ours), BufReader::new(reader.into()))
}

fn next(reader: &mut BufReader<File>) -> Event {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Call, arguments and result as one text.
fn text(event: &Event) -> String {
    let arrow = if event.failed { "failed:" } else { "->" };
    format!("{}.{}({}) {arrow} {}", event.interface, event.call, event.arguments, event.result)
}

#[test]
fn each_call_is_one_event() {
    let (connection, mut reports) = traced(&Tap::default());
    let client = demo::Client::new(&connection);
    client.add(2, 3).wait().unwrap();
    let first = next(&mut reports);
    assert_eq!(text(&first), "demo.add(a=2, b=3) -> 5");
    assert_eq!((first.kind, first.who.pid, first.who.uid, first.lost), (Kind::Call, std::process::id(), 7, 0));
    assert!(!first.who.name.is_empty() && first.took_us.is_some_and(|took| took < 10_000_000));
    client.refuse(13, "not yours".into()).wait().unwrap_err();
    client.left_out().wait().unwrap_err();
    client.sleep(30, 7).wait().unwrap();
    client.note(4).wait().unwrap();
    client.hang().deadline(Duration::from_millis(30)).wait().unwrap_err();
    let said: Vec<Event> = (0..5).map(|_| next(&mut reports)).collect();
    assert_eq!(
        said.iter().map(text).collect::<Vec<_>>(),
        [
            "demo.refuse(errno=13, reason=\"not yours\") failed: not yours (Permission denied (os error 13))",
            "demo.left_out() failed: demo.left_out is not implemented by this server (Function not implemented (os error 38))",
            "demo.sleep(ms=30, n=7) -> 7",
            "demo.note(n=4) -> ()",
            "demo.hang() failed: given up",
        ]
    );
    assert!(said[2].took_us.unwrap() >= 30_000 && said[4].took_us.unwrap() >= 20_000);
}

#[test]
fn what_no_handler_gets_is_reported_too() {
    let (connection, mut reports) = traced(&Tap::default());
    describe(&connection).unwrap();
    assert_eq!(text(&next(&mut reports)), "demo.describe() -> ()");
    other::Client::new(&connection).ping().wait().unwrap_err();
    assert_eq!(text(&next(&mut reports)), "1001.1() failed: interface 1001 is not served here, only demo");
    call_text(&connection, "demo.add", r#"["one"]"#).unwrap_err();
    assert_eq!(next(&mut reports).call, "describe");
    let unread = text(&next(&mut reports));
    assert!(unread.starts_with("demo.add() failed: the arguments of add can't be read"), "{unread}");
}

#[test]
fn nobody_is_told_before_and_after() {
    let tap = Tap::default();
    let (connection, mut reports) = traced(&tap);
    let client = demo::Client::new(&connection);
    client.add(1, 1).wait().unwrap();
    tap.remove(1);
    client.add(2, 2).wait().unwrap();
    assert_eq!(text(&next(&mut reports)), "demo.add(a=1, b=1) -> 2");
    assert_eq!(reports.read_line(&mut String::new()).unwrap(), 0, "its end");
}

#[test]
fn a_call_under_way_ends_well_whoever_stops_tracing() {
    let tap = Tap::default();
    let (connection, reports) = traced(&tap);
    let client = demo::Client::new(&connection);
    let (one, two) = (client.sleep(60, 1).send(), client.sleep(80, 2).send());
    drop(reports);
    assert_eq!(one.wait(), Ok(1));
    tap.remove(1);
    assert_eq!(two.wait(), Ok(2));
}

#[test]
fn a_client_reports_where_its_server_does_not() {
    let (reader, writer) = hurdle_sys::process::pipe().unwrap();
    let tap = Tap::default();
    let (ours, theirs) = Channel::pair().unwrap();
    serve_on(theirs, Demo::default(), ServeOptions::default());
    let client = demo::Client::new(&Connection::tapped(ours, tap.clone()));
    client.add(1, 1).wait().unwrap();
    tap.add(1, writer).unwrap();
    client.add(1, 2).wait().unwrap();
    client.hang().deadline(Duration::from_millis(20)).wait().unwrap_err();
    let mut reports = BufReader::new(File::from(reader));
    let event = next(&mut reports);
    assert_eq!((text(&event).as_str(), event.who.pid), ("demo.add(a=1, b=2) -> 3", std::process::id()));
    assert_eq!(text(&next(&mut reports)), "demo.hang() failed: the call was not answered before its deadline");
}
