//! The process and what runs it: signals and the phases of a shutdown, systemd, hardening, logging.

pub mod hardening;
pub mod logging;
pub(crate) mod shutdown;
pub mod systemd;
