//! Public keys.

/// A public key that EC2 Instance Connect takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    line: String,
}

impl PublicKey {
    /// Returns the line that is delivered.
    pub fn openssh(&self) -> &str {
        &self.line
    }
}
