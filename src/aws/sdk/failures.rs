//! The SDK's errors as ours.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::aws::class::{self, failure, failure_of_answer};
use crate::domain::cloud::{Failure, FailureClass};

/// Deepest chain of causes that is read; the SDK's have about six links.
const CAUSES_MAX: usize = 16;

/// Makes a failure of an SDK error: by AWS's name for it, else by how far the call came.
pub(super) fn failure_of<E>(error: &SdkError<E, HttpResponse>) -> Failure
where
    E: Error + ProvideErrorMetadata + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            if answer.err().code().is_none() && answer.raw().status().is_success() {
                // The SDK calls it the service's error when a success cannot be read: a captive portal's page, say.
                return failure(FailureClass::Retry, class::RESPONSE_FAILURE, &told(error));
            }
            let text = answer.err().message().map_or_else(|| unnamed(status), str::to_owned);
            failure_of_answer(answer.err().code(), status, &text)
        }
        SdkError::ResponseError(_) => failure(FailureClass::Retry, class::RESPONSE_FAILURE, &told(error)),
        SdkError::TimeoutError(_) => failure(FailureClass::Retry, class::TIMEOUT, &told(error)),
        SdkError::DispatchFailure(dispatch) => match credentials(error) {
            Some(cause) => failure(class_of_credentials(cause), class::CREDENTIALS_UNAVAILABLE, &told(error)),
            None if dispatch.is_timeout() => failure(FailureClass::Retry, class::TIMEOUT, &told(error)),
            None => failure(FailureClass::Retry, class::DISPATCH_FAILURE, &told(error)),
        },
        // And whatever kinds a later SDK has.
        _ => match credentials(error) {
            Some(cause) => failure(class_of_credentials(cause), class::CREDENTIALS_UNAVAILABLE, &told(error)),
            None => failure(FailureClass::Bug, class::CONSTRUCTION_FAILURE, &told(error)),
        },
    }
}

fn unnamed(status: u16) -> String {
    format!("an answer with HTTP status {status} that is not the service's own")
}

/// Having no credentials is the operator's to mend; a provider that fails may answer the next time.
fn class_of_credentials(cause: &CredentialsError) -> FailureClass {
    match cause {
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => FailureClass::Refused,
        _ => FailureClass::Retry,
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source()).take(CAUSES_MAX)
}

fn credentials<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    causes(error).find_map(|cause| cause.downcast_ref::<CredentialsError>())
}

/// Tells the chain of causes, each once.
fn told(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if !parts.last().is_some_and(|last| last.ends_with(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}
