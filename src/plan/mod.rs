//! Graph and adapter sites → steps over one arena; memory is planned before anything runs.
//!
//! [`Program`] is the graph lowered to physical steps: layouts chosen, constants packed, activations fused. A
//! [`Plan`] is a part of a program (from some slots to one slot, with or without a backward pass) with every buffer at
//! a fixed place in an arena.

mod again;
mod arena;
mod builder;
mod lower;
mod program;
mod schedule;
mod sliding;
mod value_order;

pub use arena::Arena;
pub use program::{PlanError, Program, SlotId, StepInfo};
pub use schedule::{Plan, Region};
pub use sliding::{Blocked, Sliding, SlidingState};
