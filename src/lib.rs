//! Instance Access: declarative, time-boxed, audited SSH access to EC2 instances, on Kubernetes.
//!
//! Rooms and what each may know: `docs/architecture.md`. Imports run one way: `api <- domain <- {aws, controller}`, and
//! `controller -> {aws, audit, admission}`; a test enforces it.

pub mod admission;
pub mod api;
pub mod audit;
pub mod aws;
pub mod clock;
pub mod config;
pub mod controller;
pub mod domain;
pub mod gateway;
pub mod kubernetes;
pub mod metrics;
pub mod process;
pub mod ready;
pub mod server;
pub mod telemetry;
pub mod traces;
pub mod verify;
