//! The integration tests: the whole proxy in front of the simulated endpoint over loopback sockets; one binary, a file
//! per subject.

mod caller;
mod world;

mod admin;
mod bad_input;
// mod config;
mod hang_up;
mod journey;
mod shutdown;
mod tidy;
mod upstream_faults;
