//! Calls that end early, servers that die, are replaced or leave: what each caller sees.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Demo, block_on, connect, demo, eventually, serve_on};
use hurdle_wire::channel::Inbox;
use hurdle_wire::frame::Kind;
use hurdle_wire::{
    Bytes, CallError, Channel, End, Limits, Refused, Router, ServeOptions, Stopper, announce_death, serve,
};
use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(60);

/// A client, the server's end, and a duplicate of it as a core keeps one.
fn channel() -> (demo::Client, Channel, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    let kept = theirs.try_clone().unwrap();
    (ours.into(), theirs, kept)
}

/// Takes the next frame as a server that then dies.
fn swallow(channel: &Channel) -> (Kind, u16) {
    let mut inbox = Inbox::new();
    let arrival = inbox.receive(channel).unwrap();
    (arrival.header().kind, arrival.header().call)
}

#[test]
fn a_deadline_ends_the_call_on_both_sides() {
    let client = connect();
    let start = Instant::now();
    assert_eq!(client.hang().deadline(SHORT).wait(), Err(CallError::Timeout));
    assert_eq!(block_on(client.hang().deadline(SHORT)), Err(CallError::Timeout));
    assert!(start.elapsed() >= 2 * SHORT && start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    eventually("the server dropped both", || client.dropped().wait() == Ok(2));
}

#[test]
fn a_server_ends_a_call_at_its_deadline_without_being_told() {
    let (ours, theirs) = Channel::pair().unwrap();
    let demo = Demo::default();
    let hanging = demo.hanging.clone();
    serve_on(theirs, demo, ServeOptions::default());
    // A client that only sends: no cancel frame will come.
    let mut header = hurdle_wire::frame::Header::new(Kind::Call, 1000, 14, 1);
    header.set_deadline(SHORT);
    hurdle_sys::seqpacket::send(std::os::fd::AsFd::as_fd(&ours), &header.encode(), &[], true).unwrap();
    eventually("the handler was dropped", || *hanging.lock().unwrap() == (1, 1));
}

#[test]
fn a_dropped_call_is_cancelled_on_the_server() {
    let client = connect();
    let call = client.hang().send();
    eventually("it started", || client.started().wait() == Ok(1));
    drop(call);
    eventually("it was dropped", || client.dropped().wait() == Ok(1));
    // The same for one that was polled and then lost a race.
    let mut call = client.hang().into_future();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::future::Future::poll(std::pin::Pin::new(&mut call), &mut context).is_pending());
    eventually("it started", || client.started().wait() == Ok(2));
    drop(call);
    eventually("it was dropped", || client.dropped().wait() == Ok(2));
}

#[test]
fn a_task_meets_its_deadline_while_a_thread_waits_longer() {
    let client = connect();
    std::thread::scope(|scope| {
        let other = client.clone();
        let long = scope.spawn(move || other.sleep(700, 1).wait());
        eventually("the long call leads", || client.started().wait().is_ok());
        let start = Instant::now();
        assert_eq!(block_on(client.hang().deadline(SHORT)), Err(CallError::Timeout));
        assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
        assert_eq!(long.join().unwrap(), Ok(1));
    });
}

#[test]
fn whoever_is_over_the_cap_waits_for_room() {
    let client = connect();
    let mut held: Vec<_> = (0..64).map(|_| client.hang().send()).collect();
    let start = Instant::now();
    assert_eq!(client.add(1, 2).deadline(SHORT).wait(), Err(CallError::Timeout));
    assert_eq!(block_on(client.add(1, 2).deadline(SHORT)), Err(CallError::Timeout));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| client.add(1, 2).wait());
        let task = scope.spawn(|| block_on(client.add(3, 4)));
        held.pop();
        assert_eq!((thread.join().unwrap(), task.join().unwrap()), (Ok(3), Ok(7)));
    });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_server_over_its_budget_receives_no_more_until_it_is_back() {
    for limits in [Limits { calls: 2, ..Limits::default() }, Limits { bytes: 1, ..Limits::default() }] {
        let (client, theirs, _) = channel();
        serve_on(theirs, Demo::default(), ServeOptions { limits, ..Default::default() });
        let start = Instant::now();
        let calls: Vec<_> = (0..4).map(|i| client.sleep(50, i).send()).collect();
        for (i, call) in calls.into_iter().enumerate() {
            assert_eq!(call.wait(), Ok(i as u32));
        }
        assert!(start.elapsed() >= Duration::from_millis(100), "they can't all have run at once");
    }
}

#[test]
fn a_full_queue_makes_the_sender_wait_and_nothing_is_lost() {
    let client = connect();
    // More than both queues hold, in both directions, from one thread.
    let calls: Vec<_> = (0..60u8).map(|i| client.echo(Bytes(vec![i; 60_000])).send()).collect();
    for (i, call) in calls.into_iter().enumerate() {
        assert!(call.wait().unwrap().iter().all(|&byte| usize::from(byte) == i));
    }
    // The same with callers that may not block.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> =
            (0..100u8).map(|i| tokio::spawn(client.echo(Bytes(vec![i; 60_000])).into_future())).collect();
        for (i, task) in tasks.into_iter().enumerate() {
            assert!(task.await.unwrap().unwrap().iter().all(|&byte| usize::from(byte) == i));
        }
    });
}

#[test]
fn the_end_of_the_server_is_death_at_once() {
    let (client, theirs, kept) = channel();
    let waiting = client.add(1, 2).send();
    drop(theirs);
    drop(kept);
    assert_eq!(waiting.wait(), Err(CallError::Dead));
    assert_eq!(client.add(1, 2).wait(), Err(CallError::Dead));
    assert_eq!(client.note(1).wait(), Err(CallError::Dead));
    assert_eq!(block_on(client.add(1, 2)), Err(CallError::Dead));
}

#[test]
fn after_an_announced_death_idempotent_calls_are_repeated_and_others_report_it() {
    let (client, theirs, kept) = channel();
    let (idempotent, other) = (client.add(1, 2).send(), client.sleep(0, 7).send());
    assert_eq!((swallow(&theirs), swallow(&theirs)), ((Kind::Call, 1), (Kind::Call, 7)));
    drop(theirs);
    announce_death(&kept).unwrap();
    serve_on(kept, Demo::default(), ServeOptions::default());
    assert_eq!(other.wait(), Err(CallError::Dead));
    assert_eq!(idempotent.wait(), Ok(3));
    assert_eq!(client.sleep(0, 8).wait(), Ok(8), "the connection goes on");
}

#[test]
fn an_awaited_call_survives_the_same_way() {
    let (client, theirs, kept) = channel();
    std::thread::scope(|scope| {
        let idempotent = scope.spawn(|| block_on(client.add(1, 2)));
        assert_eq!(swallow(&theirs), (Kind::Call, 1));
        let other = scope.spawn(|| block_on(client.noted()));
        assert_eq!(swallow(&theirs), (Kind::Call, 10));
        announce_death(&kept).unwrap();
        serve_on(kept, Demo::default(), ServeOptions::default());
        assert_eq!(idempotent.join().unwrap(), Ok(3));
        assert_eq!(other.join().unwrap(), Err(CallError::Dead));
    });
}

#[test]
fn what_a_dead_server_never_received_is_served_by_its_successor() {
    let (client, theirs, kept) = channel();
    drop(theirs);
    let calls: Vec<_> = (0..5).map(|i| client.sleep(0, i).send()).collect();
    serve_on(kept, Demo::default(), ServeOptions::default());
    for (i, call) in calls.into_iter().enumerate() {
        assert_eq!(call.wait(), Ok(i as u32), "a pause, not an error");
    }
}

#[test]
fn a_request_that_kills_every_server_is_given_up() {
    let (client, theirs, kept) = channel();
    std::thread::scope(|scope| {
        let poison = scope.spawn(|| client.add(1, 2).wait());
        for _ in 0..4 {
            assert_eq!(swallow(&theirs), (Kind::Call, 1));
            announce_death(&kept).unwrap();
        }
        assert_eq!(poison.join().unwrap(), Err(CallError::Dead));
    });
}

#[test]
fn a_stopped_server_finishes_its_calls_and_leaves_the_rest_in_the_queue() {
    let (client, theirs, kept) = channel();
    let stopper = Stopper::new();
    let options = ServeOptions { stopper: stopper.clone(), ..Default::default() };
    let old = serve_on(theirs, Demo::default(), options);
    let in_flight = client.sleep(150, 5).send();
    let moved = client.sleep_again(60_000, 6).send();
    assert_eq!(client.add(0, 1).wait(), Ok(1), "both were received before this");
    stopper.stop();
    eventually("it stopped receiving", || stopper.stopped());
    assert_eq!(old.join().unwrap().unwrap(), End::Stopped);
    let queued = client.sleep(0, 8).send();
    assert_eq!(in_flight.wait(), Ok(5));
    serve_on(kept, Demo { hurried: true, ..Default::default() }, ServeOptions::default());
    assert_eq!(queued.wait(), Ok(8));
    assert_eq!(moved.wait(), Ok(6), "given back by the old server, and asked again of the new one");
}

#[test]
fn many_swaps_under_load_lose_nothing() {
    let (client, theirs, _kept) = channel();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3u32)
            .map(|caller| {
                let (client, done) = (&client, &done);
                scope.spawn(move || {
                    let mut calls = 0;
                    while !done.load(Ordering::Relaxed) {
                        // Not idempotent, one of them with a handler that waits.
                        match caller {
                            0 => assert_eq!(client.sleep(0, calls).wait(), Ok(calls)),
                            1 => assert_eq!(client.echo(Bytes(vec![1; 10])).wait(), Ok(Bytes(vec![1; 10]))),
                            _ => assert_eq!(block_on(client.sleep_again(1, calls)), Ok(calls)),
                        }
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        for _ in 0..200 {
            let stopper = Stopper::new();
            let options = ServeOptions { stopper: stopper.clone(), ..Default::default() };
            let server = serve_on(theirs.clone(), Demo::default(), options);
            std::thread::yield_now();
            stopper.stop();
            assert_eq!(server.join().unwrap().unwrap(), End::Stopped);
        }
        done.store(true, Ordering::Relaxed);
        serve_on(theirs, Demo::default(), ServeOptions::default());
        for caller in callers {
            caller.join().unwrap();
        }
    });
}

#[test]
fn a_server_leaves_when_it_is_idle_and_the_next_one_goes_on() {
    let (client, theirs, kept) = channel();
    let options = ServeOptions { idle: Some(Duration::from_millis(30)), ..Default::default() };
    let server = serve_on(theirs, Demo::default(), options);
    assert_eq!(client.sleep(120, 1).wait(), Ok(1), "it is not idle while a call is in flight");
    assert_eq!(server.join().unwrap().unwrap(), End::Idle);
    let call = client.add(1, 2).send();
    serve_on(kept, Demo::default(), ServeOptions::default());
    assert_eq!(call.wait(), Ok(3));
}

#[test]
fn what_stands_in_for_a_failed_server_refuses_everything_with_its_errno() {
    let (client, theirs, _kept) = channel();
    let refused = Refused::new(libc::ENETDOWN, "the net server died 5 times in 10 s");
    let router = Router::refusing(refused.clone());
    std::thread::spawn(move || serve(&theirs, &router, &ServeOptions::default()));
    assert_eq!(client.add(1, 2).wait(), Err(CallError::Refused(refused.clone())));
    assert_eq!(client.hang().wait(), Err(CallError::Refused(refused)));
}
