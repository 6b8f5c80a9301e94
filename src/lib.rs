//! Instance Access: declarative, time-boxed, audited SSH access to EC2 instances, on Kubernetes.

pub mod admission;
pub mod api;
pub mod domain;
