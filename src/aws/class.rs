//! AWS's error names, each put in a class.
//!
//! By name, never by HTTP status: AWS's own pages disagree on those. The status is read only where there is no name.
//! Sources: the service models of EC2 and EC2 Instance Connect, EC2's page of error codes, the common errors of AWS.

use crate::domain::cloud::{Failure, FailureClass};

use super::message;

/// No answer in the time that we gave.
pub const TIMEOUT: &str = "Timeout";
/// The service was not reached, or hung up.
pub const DISPATCH_FAILURE: &str = "DispatchFailure";
/// There was nothing to sign with.
pub const CREDENTIALS_UNAVAILABLE: &str = "CredentialsUnavailable";
/// The answer could not be read.
pub const RESPONSE_FAILURE: &str = "ResponseFailure";
/// The call could not be built.
pub const CONSTRUCTION_FAILURE: &str = "ConstructionFailure";
/// Our own queue is full; AWS was not asked.
pub const QUEUE_FULL: &str = "QueueFull";
/// A task of ours died before it answered.
pub const CALL_LOST: &str = "CallLost";
/// AWS went on to say that there is more.
pub const PAGES_WITHOUT_END: &str = "PagesWithoutEnd";
/// AWS answered a push with neither success nor error.
pub const NOT_SUCCESSFUL: &str = "NotSuccessful";

/// The longest error name that is kept; AWS's longest today has 63 characters.
const CODE_CHARS_MAX: usize = 100;

/// Makes a failure whose texts are fit to show: the name in plain characters, the message on one short line.
pub fn failure(class: FailureClass, code: &str, text: &str) -> Failure {
    let code: String = code
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '#'))
        .take(CODE_CHARS_MAX)
        .collect();
    Failure { class, code, message: message::shown(text) }
}

/// Makes a failure of AWS's answer: its name if it has one, else its HTTP status.
pub fn failure_of_answer(name: Option<&str>, status: u16, text: &str) -> Failure {
    match name.map(bare).filter(|name| !name.is_empty()) {
        Some(name) => failure(class_of(name), name, text),
        None => failure(class_of_status(status), &format!("Http{status}"), text),
    }
}

/// Returns the class of an answer without a name: a load balancer's page, not the service's word.
pub(super) fn class_of_status(status: u16) -> FailureClass {
    match status {
        429 => FailureClass::Throttled,
        500.. => FailureClass::Retry,
        _ => FailureClass::Bug,
    }
}

/// Returns a text of AWS's on one short line, without secrets.
pub(super) fn shown(text: &str) -> String {
    message::shown(text)
}

/// Strips what EC2's documents write before a name and its protocol does not: `Client.AuthFailure`.
fn bare(name: &str) -> &str {
    name.strip_prefix("Client.").or_else(|| name.strip_prefix("Server.")).unwrap_or(name)
}

/// Returns the class of an error name. A name that nobody foresaw is a `Bug`, which is retried slowly and never final.
pub fn class_of(name: &str) -> FailureClass {
    use FailureClass::{Bug, Gone, Invalid, Refused, Retry, Throttled};
    match bare(name) {
        // EC2 Instance Connect.
        "AuthException" => Refused,
        "EC2InstanceNotFoundException" | "EC2InstanceStateInvalidException" => Gone,
        // AWS: "Wait a few minutes and try again".
        "EC2InstanceUnavailableException" => Retry,
        "InvalidArgsException" | "EC2InstanceTypeInvalidException" => Invalid,
        "ServiceException" => Retry,
        "ThrottlingException" => Throttled,
        // Every service: who we are, and what we may do.
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" | "NotAuthorized" | "AuthFailure" => Refused,
        "Blocked" | "OptInRequired" | "PendingVerification" => Refused,
        "ExpiredToken" | "ExpiredTokenException" | "InvalidToken" | "InvalidClientTokenId" => Refused,
        "UnrecognizedClientException" | "InvalidAccessKeyId" | "MissingAuthenticationToken" => Refused,
        "MissingAuthenticationTokenException" => Refused,
        "SignatureDoesNotMatch" | "InvalidSignatureException" | "IncompleteSignature" => Refused,
        "IncompleteSignatureException" => Refused,
        // The operator's clock is wrong, or its credentials are past: an operator's business as well.
        "RequestExpired" | "RequestTimeTooSkewed" | "RequestInTheFuture" => Refused,
        // Every service: too much.
        "RequestLimitExceeded" | "TooManyRequestsException" | "TooManyRequests" | "RequestThrottled" => Throttled,
        "RequestThrottledException" | "EC2ThrottledException" | "BandwidthLimitExceeded" | "SlowDown" => Throttled,
        "PriorRequestNotComplete" | "LimitExceededException" => Throttled,
        // Every service: not now.
        "InternalError" | "InternalFailure" | "InternalServerError" | "InternalServerException" => Retry,
        "InternalException" | "ServerInternal" | "Unavailable" | "ServiceUnavailable" => Retry,
        "ServiceUnavailableException" | "RequestTimeout" | "RequestTimeoutException" => Retry,
        // A page mark went stale: the look-up starts anew.
        "InvalidNextToken" | "InvalidPaginationToken" => Retry,
        // Every service: what was asked is wrong.
        "ValidationException" | "ValidationError" | "SerializationException" | "MalformedQueryString" => Invalid,
        "MissingParameter" | "MissingAction" | "InvalidAction" | "UnknownOperationException" => Invalid,
        "UnknownParameter" | "InvalidFilter" | "FilterLimitExceeded" | "InvalidRequest" | "InvalidInput" => Invalid,
        "InvalidQueryParameter" | "NoSuchVersion" | "Unsupported" | "UnsupportedOperation" => Invalid,
        // EC2: the thing asked for.
        "IncorrectInstanceState" | "IncorrectState" | "InvalidInstanceID" => Gone,
        name if name.starts_with("Throttl") => Throttled,
        name if name.starts_with("InvalidParameter") => Invalid,
        name if name.starts_with("Invalid") && name.ends_with(".NotFound") => Gone,
        name if name.starts_with("Invalid") && name.ends_with(".Malformed") => Invalid,
        name if name.starts_with("InvalidInstanceID.") => Gone,
        _ => Bug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureClass::{Bug, Gone, Invalid, Refused, Retry, Throttled};

    #[test]
    fn every_name_that_aws_documents_has_its_class() {
        for (class, names) in [
            (
                Refused,
                "AuthException AccessDeniedException AccessDenied UnauthorizedOperation AuthFailure Client.AuthFailure",
            ),
            (
                Refused,
                "OptInRequired Blocked PendingVerification ExpiredToken ExpiredTokenException InvalidClientTokenId",
            ),
            (Refused, "SignatureDoesNotMatch InvalidSignatureException RequestExpired UnrecognizedClientException"),
            (Refused, "MissingAuthenticationToken IncompleteSignature"),
            (Throttled, "ThrottlingException Throttling ThrottledException RequestLimitExceeded EC2ThrottledException"),
            (Throttled, "Client.RequestLimitExceeded SlowDown TooManyRequestsException"),
            (
                Retry,
                "ServiceException InternalError Server.InternalError InternalFailure Unavailable ServiceUnavailable",
            ),
            (Retry, "EC2InstanceUnavailableException RequestTimeout InvalidNextToken InternalServerError"),
            (Gone, "EC2InstanceNotFoundException EC2InstanceStateInvalidException InvalidInstanceID.NotFound"),
            (Gone, "IncorrectInstanceState InvalidVpcID.NotFound InvalidInstanceID.NotLinkable"),
            (
                Invalid,
                "InvalidArgsException InvalidInstanceID.Malformed InvalidParameterValue InvalidParameterCombination",
            ),
            (Invalid, "ValidationException MissingParameter UnknownParameter FilterLimitExceeded UnsupportedOperation"),
            (Bug, "SomethingNewException InvalidNovelty"),
        ] {
            for name in names.split(' ') {
                assert_eq!(class_of(name), class, "{name}");
            }
        }
    }

    #[test]
    fn the_status_counts_only_where_there_is_no_name() {
        #[track_caller]
        fn check(name: Option<&str>, status: u16, class: FailureClass, code: &str) {
            let failure = failure_of_answer(name, status, "text");
            assert_eq!((failure.class, failure.code.as_str()), (class, code));
        }
        check(Some("ThrottlingException"), 500, Throttled, "ThrottlingException");
        check(Some("AuthException"), 503, Refused, "AuthException");
        check(Some("ServiceException"), 400, Retry, "ServiceException");
        check(Some("Server.InternalError"), 500, Retry, "InternalError");
        check(None, 502, Retry, "Http502");
        check(None, 429, Throttled, "Http429");
        check(None, 403, Bug, "Http403");
        check(Some(""), 500, Retry, "Http500");
    }

    #[test]
    fn a_hostile_name_becomes_a_plain_one() {
        let name = format!("a\n b{{{}}}", "x".repeat(300));
        let code = failure(Bug, &name, "text").code;
        assert!(code.starts_with("abxx") && code.len() == CODE_CHARS_MAX, "{code}");
    }
}
