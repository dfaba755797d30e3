//! Alibaba Cloud's wire rules for RPC-style products such as CAMS: strict decoding, canonical
//! encoding, signature versions 1 and 3, error bodies and documented limits. No I/O and no clock.

pub(crate) mod actions;
pub(crate) mod answer;
pub(crate) mod created_flow;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod error_body;
pub(crate) mod flow_id;
pub(crate) mod flow_pages;
pub(crate) mod flows;
pub(crate) mod headers;
pub(crate) mod hop_by_hop;
pub(crate) mod json;
pub(crate) mod limits;
pub(crate) mod time;
pub(crate) mod v1;
pub(crate) mod v3;
