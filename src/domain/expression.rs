//! The conditions of a policy: CEL over `request`, `subject`, `instance` and `now`.
//!
//! Compiled once per policy. `cel` knows no limit of cost, so what an expression may cost at most, on the largest input, is
//! worked out when it is compiled, and one that may cost too much is a mistake of its policy, never a burnt core: see
//! [`cost`]. An error, and whatever is not true, admits nothing.
//!
//! The library is not trusted to stand every text: a panic in it is an error of the expression.

mod cost;
mod facts;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::extractors::This;
use cel::parser::{Expression, PrattParser};
use cel::{Context, Env, ExecutionError, Value};
use regex::{Regex, RegexBuilder};

use crate::api::PolicyCondition;

pub use facts::Facts;

/// The longest expression, in bytes: the CRD's bound on characters, for those who took it out of the CRD.
const EXPRESSION_BYTES_MAX: usize = 4 * 2048;
/// The deepest nesting that the parser follows. A thread of the runtime has 2 MiB of stack, and the parser takes some
/// kilobytes a level; what people write has less than ten.
const NESTING_MAX: u16 = 24;
/// The most `?` in an expression, in texts or not: the parser follows a chain of `a ? b : c ? d : e` without counting.
const QUESTION_MARKS_MAX: usize = 24;
/// The most memory that one compiled pattern of `matches` may take, in bytes. It bounds also what a text costs where the
/// fast automaton gives up: a step for each state and byte.
const PATTERN_BYTES_MAX: usize = 1 << 17;
/// The most that the conditions of one policy may cost together, in steps of the interpreter. A step takes some tenths of
/// a microsecond, so this is some tenths of a second for the largest input that there can be, and microseconds for an
/// ordinary one.
const COST_MAX: u64 = 1_000_000;

/// The environment of every expression: the standard functions, without optional values.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::default().with_optional_support(false).with_stdlib()));

/// The conditions of one policy.
#[derive(Clone, Debug, Default)]
pub struct Conditions(Vec<Condition>);

#[derive(Clone, Debug)]
struct Condition {
    expression: Arc<Expression>,
    patterns: Arc<BTreeMap<String, Regex>>,
    message: String,
    needs_instance: bool,
    needs_method: bool,
}

impl Conditions {
    /// Reads the conditions, or says what is wrong with each: the expression, the place, and what would be right.
    pub fn compile(conditions: &[PolicyCondition]) -> Result<Self, Vec<String>> {
        let (mut compiled, mut findings, mut cost) = (Vec::with_capacity(conditions.len()), Vec::new(), 0u64);
        for (number, condition) in conditions.iter().enumerate() {
            let outcome = catch_unwind(|| Condition::compile(condition))
                .unwrap_or_else(|_| Err("cannot be read; write it more simply".to_owned()));
            match outcome {
                Ok((condition, steps)) => {
                    cost = cost.saturating_add(steps);
                    compiled.push(condition);
                }
                Err(finding) => findings.push(format!("spec.conditions[{number}].expression: {finding}")),
            }
        }
        if findings.is_empty() && cost > COST_MAX {
            findings.push(format!(
                "spec.conditions: could take {cost} steps on the largest request, {COST_MAX} are allowed; nest no macros (all, exists, map, …) over groups, extra or tags, and match fewer texts"
            ));
        }
        if findings.is_empty() { Ok(Self(compiled)) } else { Err(findings) }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Evaluates each. The findings are for the requester: the policy's own message, and no value of anything.
    ///
    /// A condition that needs what is not known yet, the instance or the way, is left open.
    pub fn findings(&self, facts: &Facts) -> Vec<String> {
        let known = |condition: &&Condition| {
            (facts.has_instance() || !condition.needs_instance) && (facts.has_method() || !condition.needs_method)
        };
        self.0.iter().filter(known).filter_map(|condition| condition.finding(facts)).collect()
    }
}

impl Condition {
    fn compile(condition: &PolicyCondition) -> Result<(Self, u64), String> {
        let source = &condition.expression;
        if source.len() > EXPRESSION_BYTES_MAX {
            return Err(format!("is {} bytes long, {EXPRESSION_BYTES_MAX} are allowed", source.len()));
        }
        if source.bytes().filter(|byte| *byte == b'?').count() > QUESTION_MARKS_MAX {
            return Err(format!("has more than {QUESTION_MARKS_MAX} question marks; write several conditions"));
        }
        let expression = PrattParser::new().max_recursion_depth(NESTING_MAX).parse(source).map_err(|errors| {
            errors.errors.first().map_or_else(
                || "is no CEL".to_owned(),
                |error| format!("at line {}, column {}: {}", error.pos.0, error.pos.1, error.msg.trim()),
            )
        })?;
        let bill = cost::of(&expression)?;
        let mut patterns = BTreeMap::new();
        for pattern in bill.patterns {
            let regex = RegexBuilder::new(&pattern).size_limit(PATTERN_BYTES_MAX).build().map_err(|error| {
                let error = error.to_string();
                let error = error.lines().last().unwrap_or_default().trim().to_owned();
                format!("matches: {error}; the syntax is that of Rust's regex (RE2, no look-around)")
            })?;
            patterns.insert(pattern, regex);
        }
        let compiled = Self {
            expression: Arc::new(expression),
            patterns: Arc::new(patterns),
            message: condition.message.clone(),
            needs_instance: bill.needs_instance,
            needs_method: bill.needs_method,
        };
        Ok((compiled, bill.steps))
    }

    /// Why it does not hold, if it does not.
    fn finding(&self, facts: &Facts) -> Option<String> {
        let outcome = match facts.too_large() {
            Some(what) => Err(format!("{what} is too large for conditions")),
            None => catch_unwind(AssertUnwindSafe(|| self.evaluate(facts)))
                .unwrap_or_else(|_| Err("it could not be evaluated".to_owned())),
        };
        match outcome {
            Ok(true) => None,
            Ok(false) => Some(format!("has a condition that does not hold: {}", self.message)),
            Err(why) => Some(format!("has a condition that does not hold: {} ({why})", self.message)),
        }
    }

    fn evaluate(&self, facts: &Facts) -> Result<bool, String> {
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(facts);
        let patterns = Arc::clone(&self.patterns);
        let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| match patterns.get(&*pattern) {
            Some(pattern) => Ok(pattern.is_match(&text)),
            None => Err(ExecutionError::function_error("matches", "unknown pattern")),
        };
        context.add_function("matches", matches).map_err(|error| error.to_string())?;
        match Value::resolve(&self.expression, &context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err("it is neither true nor false".to_owned()),
            Err(error) => Err(told(&error)),
        }
    }
}

/// An error without a value in it: the requester may not know the instance's tags.
fn told(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("there is no {key}"),
        ExecutionError::NoSuchOverload(overload) => overload.to_string(),
        ExecutionError::FunctionError { function, .. } => format!("{function} failed"),
        _ => "it could not be evaluated".to_owned(),
    }
}

#[cfg(test)]
mod tests;
