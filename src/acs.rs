//! Alibaba Cloud's wire rules, as far as an RPC-style product such as CAMS uses them: strict decoding, canonical
//! encoding, signatures version 1 and 3, error bodies, documented limits. Pure: no I/O, no clock of its own.

pub(crate) mod answer;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod error_body;
pub(crate) mod flow_id;
pub(crate) mod hop_by_hop;
pub(crate) mod json;
pub(crate) mod limits;
pub(crate) mod time;
pub(crate) mod v1;
pub(crate) mod v3;
