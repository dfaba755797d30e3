//! Accounts with temporary credentials, in processes: Flowgate obtains sessions from the simulator's
//! STS, metadata service and URI, and signs with them.

mod cloud;

mod failures;
mod leaks;
mod manual;
mod proxies;
mod rotation;
mod sources;
