//! What a peer that breaks the rules gets: an answer that says why, and nothing else suffers.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Demo, demo, eventually, serve_on};
use hurdle_sys::{memfd, seqpacket};
use hurdle_wire::channel::Inbox;
use hurdle_wire::frame::{Flags, Header, Kind};
use hurdle_wire::{CallError, Channel, End, FDS_MAX, INLINE_MAX, PAYLOAD_MAX, ServeOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;

/// A served channel and the bare client end of it.
fn served() -> (Channel, JoinHandle<std::io::Result<End>>) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours, serve_on(theirs, Demo::default(), ServeOptions::default()))
}

fn send(channel: &Channel, header: Header, payload: &[u8], fds: &[BorrowedFd<'_>]) {
    let frame = [&header.encode()[..], payload].concat();
    seqpacket::send(channel.as_fd(), &frame, fds, true).unwrap();
}

fn call(number: u16, payload: &[u8]) -> Header {
    Header { payload: payload.len() as u32, ..Header::new(Kind::Call, 1000, number, 1) }
}

/// The next frame's header and payload as text: error frames hold their reason as it is.
fn next(channel: &Channel) -> (Header, String) {
    let mut inbox = Inbox::new();
    let arrival = inbox.receive(channel).unwrap();
    (*arrival.header(), String::from_utf8_lossy(arrival.payload()).into_owned())
}

/// The channel ends with an error frame of this reason.
fn ends_with(channel: &Channel, server: JoinHandle<std::io::Result<End>>, reason: &str) {
    let (header, text) = next(channel);
    assert_eq!((header.kind, header.request), (Kind::Error, 0), "{text}");
    assert!(text.contains(reason), "{text:?} should say {reason:?}");
    let End::Misuse(said) = server.join().unwrap().unwrap() else { panic!("the channel should end with misuse") };
    assert!(said.contains(reason), "{said:?} should say {reason:?}");
    assert!(channel.hung_up());
}

/// The call is answered with misuse of this reason, and the channel goes on.
fn fails_with(channel: &Channel, reason: &str) {
    let (header, text) = next(channel);
    assert_eq!((header.kind, header.request), (Kind::Error, 1), "{text}");
    assert!(text.contains(reason), "{text:?} should say {reason:?}");
    send(channel, call(1, &[20, 22]), &[20, 22], &[]);
    assert_eq!(next(channel), (Header { payload: 1, ..Header::new(Kind::Reply, 1000, 1, 1) }, "*".into()));
}

#[test]
fn a_bad_frame_ends_the_channel_and_says_why() {
    let good = call(1, &[2, 3]).encode();
    let changed = |at: usize, to: u8| {
        let mut frame = [&good[..], &[2, 3]].concat();
        frame[at] = to;
        frame
    };
    let mut large = call(6, &[]);
    large.payload = INLINE_MAX as u32 + 1;
    let reply = Header::new(Kind::Reply, 1000, 1, 1).encode().to_vec();
    for (frame, reason) in [
        (vec![], "0 bytes"),
        (good[..17].to_vec(), "17 bytes"),
        (changed(0, 9), "version 9"),
        (changed(1, 99), "unknown kind 99"),
        (changed(3, 1), "unknown flags"),
        (changed(33, 1), "announces 258"),
        (vec![1; 80_000], "more than"),
        ([&large.encode()[..], &vec![0; INLINE_MAX + 1]].concat(), "the limit is"),
        (reply, "kind Reply"),
        (Header::new(Kind::Event, 0, 1, 0).encode().to_vec(), "kind Event"),
    ] {
        let (channel, server) = served();
        seqpacket::send(channel.as_fd(), &frame, &[], true).unwrap();
        ends_with(&channel, server, reason);
    }
}

#[test]
fn memory_files_are_checked_before_they_are_read() {
    let sealed = |len: usize| memfd::sealed(c"test", &vec![0; len]).unwrap();
    let unsealed = memfd::create(c"test").unwrap();
    std::fs::File::from(unsealed.try_clone().unwrap()).set_len(100_000).unwrap();
    let pipe: OwnedFd = std::io::pipe().unwrap().0.into();
    for (file, announced, reason) in [
        (unsealed, 100_000, "not sealed"),
        (pipe, 100_000, "not a memory file"),
        (sealed(100_000), 100_001, "100001 were announced"),
        (sealed(100_000), 99_999, "99999 were announced"),
        (sealed(100_000), PAYLOAD_MAX + 1, "the limit is"),
    ] {
        let (channel, server) = served();
        let flags = Flags::OUT_OF_LINE;
        let header = Header { flags, payload: announced as u32, fds: 1, ..call(6, &[]) };
        send(&channel, header, &[], &[file.as_fd()]);
        ends_with(&channel, server, reason);
    }
}

#[test]
fn a_flood_of_fds_is_refused_and_none_stays_open() {
    for (announced, sent, reason) in
        [(FDS_MAX + 1, FDS_MAX + 1, "65 fds"), (0, 200, "200 fds that announces 0"), (3, 2, "2 fds that announces 3")]
    {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (channel, server) = served();
        let header = Header { fds: announced as u16, ..call(1, &[2, 3]) };
        send(&channel, header, &[2, 3], &vec![writer.as_fd(); sent]);
        drop(writer);
        ends_with(&channel, server, reason);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "a writer is still open");
    }
}

#[test]
fn bad_arguments_fail_their_call_only() {
    let (channel, _server) = served();
    for (number, payload, reason) in [
        (99, &[][..], "interface demo has no call 99"),
        (1, &[2], "the arguments of add can't be read"),
        (1, &[2, 3, 4], "1 bytes are left over"),
        (2, &[2, 250], "the arguments of refuse can't be read"),
        // A string that says it has 4 GiB, and a list of as many elements.
        (2, &[2, 252, 255, 255, 255, 255], "the arguments of refuse can't be read"),
        (4, &[253, 255, 255, 255, 255, 255, 255, 255, 255], "the arguments of pass can't be read"),
        (4, &[1, 1, b'a', 1, 0], "fd 0 of a message that has 0"),
    ] {
        send(&channel, call(number, payload), payload, &[]);
        fails_with(&channel, reason);
    }
}

#[test]
fn fds_are_taken_once_and_all_of_them() {
    let (channel, _server) = served();
    let (mut reader, writer) = std::io::pipe().unwrap();
    for (number, payload, fds, reason) in [
        (1, &[2, 3][..], 2, "2 fds that nothing refers to"),
        (4, &[2, 0, 1, 0, 0, 1, 0], 1, "fd 0 is referred to twice"),
        (4, &[1, 0, 1, 7], 2, "fd 7 of a message that has 2"),
        (5, &[0], 1, "not a SEQPACKET socket"),
    ] {
        let header = Header { fds, ..call(number, payload) };
        send(&channel, header, payload, &vec![writer.as_fd(); fds.into()]);
        fails_with(&channel, reason);
    }
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "a writer is still open");
}

#[test]
fn a_request_id_is_not_used_twice_at_a_time() {
    let (channel, server) = served();
    send(&channel, call(14, &[]), &[], &[]);
    send(&channel, call(14, &[]), &[], &[]);
    ends_with(&channel, server, "request 1 while it was in flight");
}

#[test]
fn a_cancel_for_nothing_is_nothing() {
    let (channel, _server) = served();
    send(&channel, Header::new(Kind::Cancel, 0, 0, 77), &[], &[]);
    send(&channel, call(1, &[20, 22]), &[20, 22], &[]);
    assert_eq!(next(&channel).1, "*");
}

#[test]
fn a_client_that_never_reads_stalls_itself_only() {
    let server_of_one = |channel: Channel| serve_on(channel, Demo::default(), ServeOptions::default());
    let (deaf, theirs) = Channel::pair().unwrap();
    let stalled = server_of_one(theirs);
    // 64 KiB each: the server's queue to it is full after a few.
    let echo = [&[251, 0, 128][..], &[5; 32768]].concat();
    for request in 1..=6 {
        let header = Header { request, ..call(6, &echo) };
        let frame = [&header.encode()[..], &echo].concat();
        seqpacket::send(deaf.as_fd(), &frame, &[], true).unwrap();
    }
    assert_eq!(common::connect().add(1, 2).deadline(Duration::from_secs(5)).wait(), Ok(3));
    drop(deaf);
    assert_eq!(stalled.join().unwrap().unwrap(), End::Closed);
}

/// A client whose server is this test.
fn client() -> (demo::Client, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours.into(), theirs)
}

fn reply(request: u64, payload: &[u8]) -> Header {
    Header { payload: payload.len() as u32, ..Header::new(Kind::Reply, 1000, 1, request) }
}

#[test]
fn a_reply_to_nobody_is_ignored() {
    let (client, server) = client();
    send(&server, reply(999, &[1]), &[1], &[]);
    let call = client.add(1, 2).send();
    let (header, _) = next(&server);
    send(&server, reply(header.request + 1, &[1]), &[1], &[]);
    send(&server, reply(header.request, &[3]), &[3], &[]);
    send(&server, reply(header.request, &[4]), &[4], &[]);
    assert_eq!(call.wait(), Ok(3));
    let call = client.add(1, 2).send();
    let (header, _) = next(&server);
    send(&server, reply(header.request, &[5]), &[5], &[]);
    assert_eq!(call.wait(), Ok(5), "the second reply to the first call was dropped");
}

#[test]
fn a_result_that_cannot_be_read_is_misuse_of_that_call() {
    let (client, server) = client();
    let (reader, _writer) = std::io::pipe().unwrap();
    for (payload, fds, reason) in
        [(&[][..], 0, "can't be read"), (&[1, 2], 0, "left over"), (&[1], 1, "nothing refers")]
    {
        let call = client.add(1, 2).send();
        let (header, _) = next(&server);
        send(&server, Header { fds, ..reply(header.request, payload) }, payload, &vec![reader.as_fd(); fds.into()]);
        let error = call.wait().unwrap_err();
        assert!(matches!(&error, CallError::Misuse(why) if why.contains(reason)), "{error}");
    }
}

#[test]
fn a_bad_frame_from_the_server_ends_all_calls_with_its_reason() {
    for (frame, reason) in [
        (vec![7; 60], "version 7"),
        (Header::new(Kind::Call, 1000, 1, 1).encode().to_vec(), "kind Call"),
        (Header::new(Kind::Error, 0, 0, 1).encode().to_vec(), "an error that can't be read"),
    ] {
        let (client, server) = client();
        let (first, second) = (client.add(1, 2).send(), client.add(3, 4).send());
        seqpacket::send(server.as_fd(), &frame, &[], true).unwrap();
        for error in [first.wait(), second.wait(), client.add(5, 6).wait()].map(Result::unwrap_err) {
            assert!(matches!(&error, CallError::Misuse(why) if why.contains(reason)), "{error}");
        }
        eventually("the server sees the end", || server.hung_up());
    }
}

#[test]
fn a_client_learns_why_its_channel_was_ended() {
    let (ours, theirs) = Channel::pair().unwrap();
    let server = serve_on(theirs, Demo::default(), ServeOptions::default());
    let second = ours.clone();
    let client = demo::Client::from(ours);
    seqpacket::send(second.as_fd(), &[3; 50], &[], true).unwrap();
    server.join().unwrap().unwrap();
    let error = client.add(1, 2).wait().unwrap_err();
    assert!(matches!(&error, CallError::Misuse(why) if why.contains("version 3")), "{error}");
}
