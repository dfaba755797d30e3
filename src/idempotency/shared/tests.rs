//! Shared records: the scripts in simulated time, the operations on real servers, and a search for
//! a sequence of faults after which CAMS executes a key twice.

mod fake_redis;
mod model;
mod scripts;
mod servers;
