//! What an expression may cost at most, worked out from its tree and the bounds of its variables.
//!
//! A step is one node that is evaluated, one item that is passed, or 64 bytes that are copied or compared. Each node is
//! billed as if everything in it were evaluated, on values as large as they may be, errors included (they carry copies of
//! their operands). What is not in here is refused: so a function that a later version of the library brings costs nothing
//! before somebody has thought about its price.

use std::collections::BTreeSet;

use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};
use cel::parser::Expression;

use super::facts::{Shape, VARIABLES};

/// The deepest tree, in nodes: the interpreter takes some kilobytes of stack for each.
const DEPTH_MAX: usize = 32;
/// The largest value that an expression may make, in units of 64 bytes: a MiB.
const VALUE_WEIGHT_MAX: u64 = 1 << 14;
/// The longest text that a number, a time or a truth value becomes, in bytes: a double near 1e308 is the longest.
const PLAIN_TEXT_BYTES_MAX: u64 = 400;

/// The functions there are, for the message where one is not.
const FUNCTIONS: &str = "size, contains, startsWith, endsWith, matches, string, int, uint, double, bool, timestamp, duration, and getFullYear, getMonth, getDate, getDayOfMonth, getDayOfWeek, getDayOfYear, getHours, getMinutes, getSeconds, getMilliseconds";

/// What an expression costs, and what it needs.
#[derive(Debug, Default)]
pub(super) struct Bill {
    /// The most steps that it takes.
    pub steps: u64,
    /// Whether it asks about the instance.
    pub needs_instance: bool,
    /// Whether it asks about the way to it.
    pub needs_method: bool,
    /// The patterns of `matches`.
    pub patterns: BTreeSet<String>,
}

/// Works out the bill, or says why there is none: a field that does not exist, a function that is not known, a value that
/// grows too large.
pub(super) fn of(expression: &Expression) -> Result<Bill, String> {
    let mut walk = Walk { bill: Bill::default(), locals: Vec::new(), depth: 0 };
    let (shape, steps) = walk.visit(expression)?;
    if shape != Shape::Plain {
        return Err("must come to true or false".to_owned());
    }
    walk.bill.steps = steps;
    Ok(walk.bill)
}

/// A value's bounds, and the most steps that it takes to make.
type Priced = Result<(Shape, u64), String>;

struct Walk {
    bill: Bill,
    /// The variables of the macros around, innermost last.
    locals: Vec<(String, Shape)>,
    depth: usize,
}

impl Walk {
    fn visit(&mut self, expression: &Expression) -> Priced {
        if self.depth == DEPTH_MAX {
            return Err(format!("is nested deeper than {DEPTH_MAX} levels; write several conditions"));
        }
        self.depth += 1;
        let priced = self.node(expression);
        self.depth -= 1;
        priced
    }

    fn node(&mut self, expression: &Expression) -> Priced {
        match &expression.expr {
            Expr::Literal(literal) => Ok((
                match literal {
                    LiteralValue::String(text) => Shape::Text(length(text.inner().len())),
                    LiteralValue::Bytes(bytes) => Shape::Text(length(bytes.inner().len())),
                    LiteralValue::Boolean(_)
                    | LiteralValue::Double(_)
                    | LiteralValue::Int(_)
                    | LiteralValue::Null
                    | LiteralValue::UInt(_) => Shape::Plain,
                },
                1,
            )),
            Expr::Ident(name) => self.variable(name).map(|shape| (shape, 1)),
            Expr::Select(select) => {
                let (operand, steps) = self.visit(&select.operand)?;
                let shape = self.field(&operand, &select.field, &select.operand)?;
                Ok((if select.test { Shape::Plain } else { shape }, plus(steps, 2)))
            }
            Expr::List(list) => {
                let (mut item, mut steps) = (None, 1);
                for element in &list.elements {
                    let (shape, cost) = self.visit(element)?;
                    steps = plus(steps, plus(cost, shape.weight()));
                    item = Some(join(item, shape)?);
                }
                made(Shape::List(length(list.elements.len()), Box::new(item.unwrap_or(Shape::Plain))), steps)
            }
            Expr::Map(map) => {
                let (mut value, mut key_bytes, mut steps) = (None, 0, 1);
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return Err("has a map that cannot be read".to_owned());
                    };
                    let (key, key_steps) = self.visit(&entry.key)?;
                    let (shape, cost) = self.visit(&entry.value)?;
                    key_bytes = match key {
                        Shape::Text(bytes) => key_bytes.max(bytes),
                        Shape::Plain => key_bytes.max(8),
                        Shape::List(..) | Shape::Map(..) | Shape::Record(_) => {
                            return Err("has a map whose key is no text and no number".to_owned());
                        }
                    };
                    steps = plus(steps, plus(plus(key_steps, cost), plus(key.weight(), shape.weight())));
                    value = Some(join(value, shape)?);
                }
                let value = Box::new(value.unwrap_or(Shape::Plain));
                made(Shape::Map(length(map.entries.len()), key_bytes, value), steps)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Call(call) => self.call(&call.func_name, call.target.as_deref(), &call.args),
            Expr::Struct(message) => Err(format!("{} is no type; there are no messages", message.type_name)),
            Expr::Unspecified => Err("cannot be read".to_owned()),
        }
    }

    fn variable(&mut self, name: &str) -> Result<Shape, String> {
        if let Some((_, shape)) = self.locals.iter().rev().find(|(local, _)| local == name) {
            return Ok(shape.clone());
        }
        self.bill.needs_instance |= name == "instance";
        VARIABLES
            .get(name)
            .cloned()
            .ok_or_else(|| format!("there is no variable {name}; there are request, subject, instance and now"))
    }

    fn field(&mut self, operand: &Shape, field: &str, of: &Expression) -> Result<Shape, String> {
        match operand {
            Shape::Record(fields) => {
                self.bill.needs_method |= field == "connectionMethod";
                let found = fields.iter().find(|(name, _)| *name == field).map(|(_, shape)| shape.clone());
                found.ok_or_else(|| {
                    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
                    let of = if let Expr::Ident(name) = &of.expr { name.as_str() } else { "it" };
                    format!("there is no field {field}; {of} has {}", names.join(", "))
                })
            }
            Shape::Map(_, _, value) => Ok(value.as_ref().clone()),
            Shape::Plain | Shape::Text(_) | Shape::List(..) => {
                Err(format!("asks for a field {field} of what has no fields"))
            }
        }
    }

    /// One of the macros. The library expands them into a fold, which is billed by its own kinds alone.
    fn comprehension(&mut self, fold: &ComprehensionExpr) -> Priced {
        let (range, range_steps) = self.visit(&fold.iter_range)?;
        let (items, item) = match range {
            Shape::List(items, item) => (items, *item),
            Shape::Map(entries, key_bytes, _) => (entries, Shape::Text(key_bytes)),
            Shape::Plain | Shape::Text(_) | Shape::Record(_) => {
                return Err("has a macro (all, exists, map, …) over what is neither a list nor a map".to_owned());
            }
        };
        if fold.iter_var2.is_some() {
            return Err("has a macro with two variables, which are not supported".to_owned());
        }
        let is_list = matches!(fold.accu_init.expr, Expr::List(_));
        let accumulator = if is_list { Shape::List(0, Box::new(Shape::Plain)) } else { Shape::Plain };
        let locals = self.locals.len();
        self.locals.push((fold.accu_var.clone(), accumulator));
        let (_, condition_steps) = self.visit(&fold.loop_cond)?;
        self.locals.push((fold.iter_var.clone(), item.clone()));
        let (step, step_steps) = self.visit(&fold.loop_step)?;
        self.locals.truncate(locals);
        let each = plus(plus(condition_steps, step_steps), plus(item.weight(), 2));
        let each = if is_list { plus(each, step.weight()) } else { each };
        let steps = plus(range_steps, items.saturating_mul(each));
        match (is_list, step) {
            // `map` and `filter` add one item a time: the library appends in place.
            (true, Shape::List(added, item)) if added <= 1 => made(Shape::List(items, item), plus(steps, items)),
            (false, Shape::Plain) => Ok((Shape::Plain, plus(steps, 4))),
            _ => Err("has a macro that does not come to true or false for each item".to_owned()),
        }
    }

    fn call(&mut self, name: &str, target: Option<&Expression>, args: &[Expression]) -> Priced {
        let mut operands = Vec::with_capacity(args.len() + 1);
        let mut steps = 1;
        for operand in target.into_iter().chain(args) {
            let (shape, cost) = self.visit(operand)?;
            steps = plus(steps, cost);
            operands.push(shape);
        }
        let weight = operands.iter().fold(0, |sum, shape| plus(sum, shape.weight()));
        let is_scalar = |shape: &Shape| matches!(shape, Shape::Plain | Shape::Text(_));
        match (name, operands.as_slice()) {
            (operators::CONDITIONAL, [Shape::Plain, yes, no]) => Ok((join(Some(yes.clone()), no.clone())?, steps)),
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [Shape::Plain, Shape::Plain])
            | (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, [Shape::Plain]) => Ok((Shape::Plain, steps)),
            (operators::EQUALS | operators::NOT_EQUALS, [_, _]) => Ok((Shape::Plain, plus(steps, weight))),
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                [left, right],
            ) if is_scalar(left) && is_scalar(right) => Ok((Shape::Plain, plus(steps, weight))),
            (operators::ADD, [Shape::Text(left), Shape::Text(right)]) => {
                made(Shape::Text(plus(*left, *right)), plus(steps, weight.saturating_mul(2)))
            }
            (operators::ADD, [Shape::List(left, item), Shape::List(right, other)]) => {
                let item = if *left == 0 { None } else { Some(item.as_ref().clone()) };
                let item = if *right == 0 { item.unwrap_or(Shape::Plain) } else { join(item, other.as_ref().clone())? };
                made(Shape::List(plus(*left, *right), Box::new(item)), plus(steps, weight.saturating_mul(2)))
            }
            (
                operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
                [Shape::Plain, Shape::Plain],
            )
            | (operators::NEGATE, [Shape::Plain]) => Ok((Shape::Plain, plus(steps, 2))),
            // What is no index makes an error with a copy of the list.
            (operators::INDEX, [Shape::List(_, item), Shape::Plain]) => {
                Ok((item.as_ref().clone(), plus(steps, weight)))
            }
            (operators::INDEX, [Shape::Map(_, _, value), key]) if is_scalar(key) => {
                Ok((value.as_ref().clone(), plus(steps, key.weight())))
            }
            (operators::INDEX, [record @ Shape::Record(_), Shape::Text(_)]) => match args {
                [of, Expression { expr: Expr::Literal(LiteralValue::String(field)), .. }] => {
                    Ok((self.field(record, field.inner(), of)?, plus(steps, 1)))
                }
                _ => Err("looks up a field by a name that is not written out".to_owned()),
            },
            (operators::IN, [item, list @ Shape::List(items, _)]) => {
                Ok((Shape::Plain, plus(steps, plus(list.weight(), items.saturating_mul(item.weight())))))
            }
            (operators::IN, [item, Shape::Map(..)]) if is_scalar(item) => {
                Ok((Shape::Plain, plus(steps, item.weight())))
            }
            // The characters of a text are counted, the items of a list are known.
            ("size", [Shape::Text(_) | Shape::List(..) | Shape::Map(..)]) => Ok((Shape::Plain, plus(steps, weight))),
            ("contains" | "startsWith" | "endsWith", [Shape::Text(_), Shape::Text(_)]) if target.is_some() => {
                Ok((Shape::Plain, plus(steps, weight.saturating_mul(2))))
            }
            ("matches", [Shape::Text(text), Shape::Text(_)]) => {
                let pattern = args.last().map(|pattern| &pattern.expr);
                let Some(Expr::Literal(LiteralValue::String(pattern))) = pattern else {
                    return Err("matches takes a pattern that is written out, so that it is compiled once".to_owned());
                };
                self.bill.patterns.insert(pattern.inner().to_owned());
                // A step a byte: where the fast automaton gives up, many states are looked at for each.
                Ok((Shape::Plain, plus(steps, plus(weight, *text))))
            }
            ("string", [Shape::Text(bytes)]) => made(Shape::Text(*bytes), plus(steps, weight)),
            ("string", [Shape::Plain]) => made(Shape::Text(PLAIN_TEXT_BYTES_MAX), plus(steps, 8)),
            ("int" | "uint" | "double" | "bool" | "timestamp" | "duration", [operand])
                if target.is_none() && is_scalar(operand) =>
            {
                Ok((Shape::Plain, plus(steps, plus(weight, 4))))
            }
            (
                "getFullYear" | "getMonth" | "getDate" | "getDayOfMonth" | "getDayOfWeek" | "getDayOfYear" | "getHours"
                | "getMinutes" | "getSeconds" | "getMilliseconds",
                [Shape::Plain] | [Shape::Plain, Shape::Text(_)],
            ) if target.is_some() => Ok((Shape::Plain, plus(steps, plus(weight, 16)))),
            (name, _) if name.starts_with(|first: char| first.is_ascii_alphabetic()) => {
                Err(format!("calls {name} in a way that is not known; the functions are {FUNCTIONS}"))
            }
            (operator, _) => Err(format!(
                "uses the operator {} on what it does not take",
                operator.trim_matches(|mark| mark == '_' || mark == '@')
            )),
        }
    }
}

/// A value that is made, not looked up: it takes memory of its own.
fn made(shape: Shape, steps: u64) -> Priced {
    if shape.weight() > VALUE_WEIGHT_MAX {
        return Err("makes a value that could be larger than a MiB".to_owned());
    }
    let steps = plus(steps, shape.weight());
    Ok((shape, steps))
}

/// Bounds that hold for either of two values.
fn join(left: Option<Shape>, right: Shape) -> Result<Shape, String> {
    let Some(left) = left else { return Ok(right) };
    Ok(match (left, right) {
        (Shape::Plain, Shape::Plain) => Shape::Plain,
        (Shape::Text(left), Shape::Text(right)) => Shape::Text(left.max(right)),
        (Shape::Plain, Shape::Text(bytes)) | (Shape::Text(bytes), Shape::Plain) => Shape::Text(bytes),
        (Shape::List(0, _), list @ Shape::List(..)) | (list @ Shape::List(..), Shape::List(0, _)) => list,
        (Shape::List(left, item), Shape::List(right, other)) => {
            Shape::List(left.max(right), Box::new(join(Some(*item), *other)?))
        }
        (Shape::Map(left, key, value), Shape::Map(right, other_key, other)) => {
            Shape::Map(left.max(right), key.max(other_key), Box::new(join(Some(*value), *other)?))
        }
        _ => return Err("mixes values of different kinds in one list, map or choice".to_owned()),
    })
}

fn plus(left: u64, right: u64) -> u64 {
    left.saturating_add(right)
}

fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
