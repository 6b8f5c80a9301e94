//! The stand-in for AWS, asked as AWS is asked: by raw HTTP, by AWS's own client, and beside moto.

mod client;
mod faults;
mod look_ups;
mod other_clients;
mod pushes;
mod signatures;
mod tunnels;
