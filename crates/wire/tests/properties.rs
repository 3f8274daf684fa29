//! What holds for all inputs: round trips, and no bytes that make a decoder panic. The fuzz targets run the same code.
#![allow(clippy::unwrap_used)]

mod common;

use common::connect;
use hurdle_wire::frame::{Flags, Header, Kind};
use hurdle_wire::{Bytes, Fd, HEADER_LEN, INLINE_MAX, fuzz};
use proptest::prelude::*;
use std::os::unix::fs::MetadataExt;

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Call, Kind::Reply, Kind::Error, Kind::OneWay, Kind::Event])
}

prop_compose! {
    fn header()(
        kind in kind(), interface: u16, call: u16, request in 1u64.., deadline: u64, trace: u64,
        payload in 0..2048u32, fds in 0..=64u16, text: bool,
    ) -> Header {
        let flags = if text { Flags::TEXT } else { Flags::none() };
        Header { kind, flags, interface, call, request, deadline, trace, payload, fds }
    }
}

/// The inode of an open file: the same for each duplicate of it.
fn inode(fd: &Fd) -> u64 {
    std::fs::File::from(fd.clone().into_owned().unwrap()).metadata().unwrap().ino()
}

proptest! {
    #[test]
    fn a_header_comes_back(header in header()) {
        let frame = [&header.encode()[..], &vec![0; header.payload as usize]].concat();
        prop_assert_eq!(Header::decode(&frame), Ok(header));
        // And no other length of the payload is accepted.
        prop_assert!(Header::decode(&frame[..frame.len() - 1]).is_err());
        prop_assert!(Header::decode(&[&frame[..], &[0]].concat()).is_err());
    }

    #[test]
    fn no_bytes_make_the_frame_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..2 * HEADER_LEN)) {
        fuzz::frame(&bytes);
    }

    #[test]
    fn no_nearly_good_frame_does_either(header in header(), at in 0..HEADER_LEN, to: u8) {
        let mut frame = [&header.encode()[..], &vec![0; header.payload as usize]].concat();
        frame[at] = to;
        fuzz::frame(&frame);
    }

    #[test]
    fn no_bytes_make_an_argument_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::arguments(&bytes);
    }

    #[test]
    fn structured_bytes_do_neither(
        variant in 0..8u8,
        parts in prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 3, 4, 5, 97, 250, 251, 252, 253, 254, 255]), 0..60),
    ) {
        fuzz::arguments(&[&[variant][..], &parts].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_of_any_length_come_back(len in prop_oneof![0..300usize, INLINE_MAX - 50..INLINE_MAX + 50, 0..300_000usize], seed: u8) {
        let data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
        prop_assert!(connect().echo(Bytes(data.clone())).wait().unwrap().0 == data);
    }

    #[test]
    fn fds_come_back_in_order(list in prop::collection::vec((".{0,20}", any::<bool>()), 0..64)) {
        let mut open = Vec::new();
        let mut pipes = Vec::new();
        let arguments: Vec<_> = list
            .into_iter()
            .map(|(name, with)| {
                let fd = with.then(|| {
                    let (reader, writer) = std::io::pipe().unwrap();
                    pipes.push(writer);
                    let fd = Fd::from(std::os::fd::OwnedFd::from(reader));
                    open.push(inode(&fd));
                    fd
                });
                (name, fd)
            })
            .collect();
        let back = connect().pass(arguments).wait().unwrap();
        prop_assert_eq!(back.iter().map(inode).collect::<Vec<_>>(), open);
    }
}
