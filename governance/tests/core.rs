//! Tests of the core from outside: the rules as stories, and what holds over every history.

mod kit;
mod properties;
mod rules;
