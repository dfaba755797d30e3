//! Integration tests: the whole proxy in front of the simulated endpoint over loopback sockets. One
//! binary, one file for each subject.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in helpers too"
)]

mod call_results;
mod caller;
mod connect_proxy;
mod harness;
mod keyed_calls;
mod ledger;
mod process;
mod redis;
mod relay;

mod admin;
mod adoption;
mod auth;
mod bad_input;
mod balancers;
mod call_log;
mod chaos;
mod cli;
mod client_keys;
mod config;
mod config_directory;
mod config_size;
mod doc_commands;
mod docs;
mod early_refusals;
mod hang_up;
mod hardening;
mod health;
mod holds;
mod idempotency;
mod idempotency_replicas;
mod idempotency_restart;
mod identification;
mod journal;
mod journey;
mod looks;
mod looks_replicas;
mod observe;
mod operator;
mod process_resources;
mod prometheus;
mod relayed_keys;
mod reload;
mod replicas;
mod secrets;
mod security;
mod service_manager;
mod sessions;
mod shutdown;
mod start;
mod status;
mod store;
mod tidy;
mod tls;
mod traces;
mod tunnels;
mod unix;
mod unknown;
mod upstream_faults;
mod upstreams;
