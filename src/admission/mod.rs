//! Stub.
/// Stub.
#[derive(Clone, Debug)]
pub struct ServiceAccount;
impl std::str::FromStr for ServiceAccount { type Err = String; fn from_str(_: &str) -> Result<Self, String> { Ok(Self) } }
/// Stub.
pub fn yaml(_: &ServiceAccount, _: bool) -> String { String::new() }
