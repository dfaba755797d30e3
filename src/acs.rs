//! Alibaba Cloud's wire rules, as far as an RPC-style product such as CAMS uses them: strict decoding, canonical
//! encoding, signatures version 1 and 3, error bodies, documented limits. Pure: no I/O, no clock of its own.

pub mod answer;
pub mod decode;
pub mod encode;
pub mod error_body;
pub mod json;
pub mod limits;
pub mod time;
pub mod v1;
pub mod v3;
