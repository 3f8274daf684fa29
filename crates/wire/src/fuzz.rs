//! What the fuzz targets and the property tests share: hostile bytes into each decoder.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::error::ErrorFrame;
use crate::fd::{Bytes, Fd};
use crate::frame::{HEADER_LEN, Header};

/// Any bytes as a frame: what is accepted means the same when it is encoded again.
pub fn frame(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode(), bytes[..HEADER_LEN]);
    }
}

/// One of each shape that arguments can have.
#[derive(Debug, Serialize, Deserialize)]
enum Shape {
    Unit,
    Scalars(bool, u8, i16, u32, i64, u128, f64, char),
    Text { text: String, bytes: Bytes, list: Vec<u64> },
    Nested(Vec<Vec<Option<Shape>>>),
    Map(std::collections::BTreeMap<String, Shape>),
    Open(Fd, Vec<Fd>, Option<Fd>),
}

/// Any bytes as arguments, with some fds beside them.
pub fn arguments(bytes: &[u8]) {
    try_as::<(Shape,)>(bytes);
    try_as::<(String, Vec<String>, Bytes)>(bytes);
    try_as::<(Fd, u32)>(bytes);
    try_as::<ErrorFrame>(bytes);
    let _ = codec::decode_text::<(u32, Option<String>, Bytes)>(bytes, &["a", "b", "c"]);
}

fn try_as<T: DeserializeOwned + Serialize + Debug>(bytes: &[u8]) {
    for fds in 0..3 {
        let files = (0..fds).filter_map(|_| std::fs::File::open("/dev/null").ok()).map(Fd::from).collect();
        if let Ok(value) = codec::decode_shared::<T>(bytes, files) {
            // What was decoded can be sent on, and names the fds that it took: all, unless a map says a key twice, keeps the
            // last value, and closes what the others held.
            let message = codec::encode(&value).expect("what was decoded can be encoded");
            assert!(message.fds() <= fds);
        }
    }
}
