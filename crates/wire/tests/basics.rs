//! What an interface does when all goes well: calls, fds, large data, reflection, text, async handlers and callers.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Demo, connect, demo, serve_on};
use hurdle_wire::{Bytes, CallError, Channel, Connection, Fd, Refused, call_text, describe};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

#[test]
fn a_call_is_answered_and_a_refusal_keeps_its_errno() {
    let client = connect();
    assert_eq!(client.add(2, 3).wait(), Ok(5));
    let refused = client.refuse(libc::EACCES, "no grant".into()).wait().unwrap_err();
    assert_eq!(refused, CallError::Refused(Refused::new(libc::EACCES, "no grant")));
}

#[test]
fn a_call_that_the_server_leaves_out_is_refused_with_enosys() {
    let error = connect().left_out().wait().unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOSYS));
    assert!(error.to_string().contains("demo.left_out"), "{error}");
}

#[test]
fn fds_travel_in_both_directions_wherever_they_stand() {
    let client = connect();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (_, other) = std::io::pipe().unwrap();
    let writer = Fd::from(std::os::fd::OwnedFd::from(writer));
    let other = Fd::from(std::os::fd::OwnedFd::from(other));
    let mut back =
        client.pass(vec![("a".into(), Some(writer)), ("b".into(), None), ("c".into(), Some(other))]).wait().unwrap();
    assert_eq!(back.len(), 2);
    let mut file = std::fs::File::from(back.remove(0).into_owned().unwrap());
    file.write_all(b"through").unwrap();
    drop((file, back));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through", "and no copy of the fd is left open anywhere");
}

#[test]
fn a_channel_is_an_argument() {
    let client = connect();
    let (ours, theirs) = Channel::pair().unwrap();
    client.serve_this(theirs).wait().unwrap();
    assert_eq!(demo::Client::from(ours).add(40, 2).wait(), Ok(42));
}

#[test]
fn data_of_any_size_up_to_the_limit_comes_back() {
    let client = connect();
    for len in [0, 1, 64, 4096, 64 << 10, (64 << 10) + 1024, (64 << 10) + 1025, 1 << 20, 16 << 20] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        let back = client.echo(Bytes(data.clone())).wait().unwrap();
        assert!(back.0 == data, "{len} bytes differ");
    }
    let error = client.echo(Bytes(vec![0; 17 << 20])).wait().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EMSGSIZE));
    assert_eq!(client.add(1, 1).wait(), Ok(2), "the connection goes on");
}

#[test]
fn a_handler_may_wait_with_tokio_from_its_first_poll_on() {
    let client = connect();
    let start = Instant::now();
    let slow: Vec<_> = (0..20).map(|i| client.sleep(200, i).send()).collect();
    // Answered while the others sleep.
    assert_eq!(client.add(1, 2).wait(), Ok(3));
    assert!(start.elapsed() < Duration::from_millis(190));
    for (i, call) in slow.into_iter().enumerate() {
        assert_eq!(call.wait(), Ok(i as u32));
    }
    assert!(start.elapsed() < Duration::from_millis(1500), "they slept at the same time");
}

#[test]
fn calls_are_awaited_on_any_executor() {
    let client = connect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let sum = runtime.block_on(async {
        let mut tasks = Vec::new();
        for i in 0..300u32 {
            let client = client.clone();
            tasks.push(tokio::spawn(async move {
                if i % 3 == 0 { client.sleep(i % 20, i).await.unwrap() } else { client.add(i, 0).await.unwrap() }
            }));
        }
        let mut sum = 0;
        for task in tasks {
            sum += task.await.unwrap();
        }
        sum
    });
    assert_eq!(sum, (0..300u32).sum::<u32>());
}

#[test]
fn many_threads_and_tasks_share_one_connection() {
    let client = connect();
    std::thread::scope(|scope| {
        for thread in 0..16u32 {
            let client = &client;
            scope.spawn(move || {
                for i in 0..200u32 {
                    let n = thread * 1000 + i;
                    match i % 10 {
                        0 => assert_eq!(client.sleep(1, n).wait(), Ok(n)),
                        1 => {
                            let data = vec![n as u8; 70_000];
                            assert!(client.echo(Bytes(data.clone())).wait().unwrap().0 == data);
                        }
                        2 => assert_eq!(common::block_on(client.add(n, 1)), Ok(n + 1)),
                        _ => assert_eq!(client.add(n, 1).wait(), Ok(n + 1)),
                    }
                }
            });
        }
    });
}

#[test]
fn one_way_calls_arrive_in_order() {
    let client = connect();
    for i in 0..1000 {
        client.note(i).wait().unwrap();
    }
    assert_eq!(client.noted().wait().unwrap(), (0..1000).collect::<Vec<_>>());
}

#[test]
fn a_server_says_what_it_serves() {
    let client = connect();
    let all = describe(client.connection()).unwrap();
    assert_eq!(all, [demo::INTERFACE.describe()]);
    let add = all[0].calls.iter().find(|call| call.name == "add").unwrap();
    assert_eq!(add.to_string(), "add(a: u32, b: u32) -> u32");
    assert_eq!((add.doc.as_str(), add.idempotent), ("Adds.", true));
    assert_eq!(all[0].retired, [90, 91]);
}

#[test]
fn any_call_can_be_made_as_text() {
    let client = connect();
    let text = |path: &str, arguments: &str| call_text(client.connection(), path, arguments);
    assert_eq!(text("demo.add", "[2, 3]").unwrap(), "5");
    assert_eq!(text("demo.add", r#"{"b": 1, "a": 41}"#).unwrap(), "42");
    assert_eq!(text("demo.noted", "").unwrap(), "[]");
    assert_eq!(text("demo.note", "[9]").unwrap(), "null");
    assert_eq!(text("demo.noted", "[]").unwrap(), "[9]");
    assert_eq!(text("demo.echo", r#"["hi"]"#).unwrap(), "[104,105]");
    for (path, arguments, reason) in [
        ("nothing.add", "[]", "no interface \"nothing\"; there is: demo"),
        ("demo.subtract", "[]", "no call \"subtract\" in demo; there is: add, refuse"),
        ("demo.add", "[2]", "2 arguments"),
        ("demo.add", r#"[2, "x"]"#, "invalid type: string"),
        ("demo.add", r#"{"a": 1, "c": 2}"#, "no argument is called \"c\""),
        ("demo.add", "[2, 3", "EOF"),
        ("demo.pass", r#"[[["a", 1]]]"#, "can't travel as text"),
        ("demo.open_null", "[]", "can't travel as text"),
        ("demo.refuse", r#"[2, "gone"]"#, "gone (No such file or directory"),
    ] {
        let error = text(path, arguments).unwrap_err().to_string();
        assert!(error.contains(reason), "{path}{arguments}: {error:?} should say {reason:?}");
    }
}

#[test]
fn the_shape_of_an_interface_is_stable_text() {
    let shape = hurdle_wire::shape(&demo::INTERFACE);
    assert!(shape.starts_with("interface demo = 1000\n1 idempotent add(a: u32, b: u32) -> u32\n2 refuse("), "{shape}");
    assert!(shape.contains("\n9 oneway note(n: u32)\n"), "{shape}");
    assert!(shape.ends_with("90 retired\n91 retired\n"), "{shape}");
}

#[test]
fn a_recorded_payload_is_printed_by_the_interface() {
    let add = demo::INTERFACE.call(1).unwrap();
    assert_eq!((add.print_arguments)(&[2, 3], vec![]).unwrap(), "a=2, b=3");
    assert_eq!((add.print_result)(&[5], vec![]).unwrap(), "5");
    assert!((add.print_result)(&[5, 5], vec![]).unwrap_err().contains("left over"));
}

#[test]
fn every_call_is_a_line_of_trace_when_somebody_listens() {
    let lines = common::Lines::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(lines.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let client = connect();
        client.add(2, 3).wait().unwrap();
        client.refuse(1, "no".into()).wait().unwrap_err();
    });
    let text = lines.text();
    assert!(text.contains("demo.add(a=2, b=3) -> Ok(5) in"), "{text}");
    assert!(text.contains("demo.refuse(errno=1, reason=\"no\") -> Err(Refused"), "{text}");
}

#[test]
fn a_handler_is_told_who_calls_and_how_long_it_has() {
    let (ours, theirs) = Channel::pair().unwrap();
    let peer = hurdle_wire::Peer { pid: 7, uid: 1000, gid: 1000, badge: 3 };
    serve_on(theirs, Demo::default(), hurdle_wire::ServeOptions { peer, ..Default::default() });
    let client = demo::Client::from(ours);
    let (who, left, trace) = client.about().deadline(Duration::from_secs(5)).wait().unwrap();
    assert_eq!(who, "7 1000 1000 3");
    assert!(left > 4000 && left <= 5000, "{left}");
    assert_ne!(trace, 0);
    let (_, left, _) = client.about().deadline(Duration::MAX).wait().unwrap();
    assert_eq!(left, u64::MAX);
}

#[test]
fn two_interfaces_share_a_channel_and_an_unknown_one_is_misuse() {
    let client = connect();
    let other = common::other::Client::new(client.connection());
    let error = other.ping().wait().unwrap_err();
    assert!(
        matches!(&error, CallError::Misuse(why) if why.contains("interface 1001 is not served here, only demo")),
        "{error}"
    );
    assert_eq!(client.add(1, 1).wait(), Ok(2), "that was misuse of one call, not of the channel");
}

#[test]
fn dropping_the_last_connection_closes_the_channel() {
    let (ours, theirs) = Channel::pair().unwrap();
    let served = serve_on(theirs, Demo::default(), Default::default());
    let client = demo::Client::from(ours);
    common::block_on(client.sleep(1, 1)).unwrap();
    let connection: Connection = client.connection().clone();
    drop(client);
    drop(connection);
    assert_eq!(served.join().unwrap().unwrap(), hurdle_wire::End::Closed);
}
