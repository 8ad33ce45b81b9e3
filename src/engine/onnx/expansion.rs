//! Expansion: how large a model becomes when the calls of its own functions are replaced by their bodies.
//!
//! A call costs a node plus all that the called function costs, so a few functions that call each other ten
//! times each make millions of nodes from two kilobytes. The costs are worked out once per function, callees
//! first, without recursion; functions that are left over wait for each other: they are recursive.
//!
//! Not here: finding the calls (`walk`).

use std::collections::HashMap;

use super::{Limits, OnnxError, at_most, shown};

/// The nodes of one graph or function with its subgraphs, and the functions it calls.
#[derive(Debug, Default)]
pub(super) struct Body {
    nodes: u64,
    levels: usize,
    calls: HashMap<usize, Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    count: u64,
    level_max: usize,
}

/// What a body costs with all calls replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Nodes, those that call included; `u64::MAX` stands for that and more.
    pub(super) nodes: u64,
    /// Levels of graphs in graphs, 1 where no node has a subgraph.
    pub(super) levels: usize,
    calls_deep: usize,
}

impl Body {
    /// Counts a node in a graph at `level`, 1 being the outermost, that may call a function.
    pub(super) fn count(&mut self, level: usize, callee: Option<usize>) {
        self.nodes += 1;
        if let Some(callee) = callee {
            let calls = self.calls.entry(callee).or_default();
            calls.count += 1;
            calls.level_max = calls.level_max.max(level);
        }
    }

    /// Notes that there is a graph at `level`.
    pub(super) fn reach(&mut self, level: usize) {
        self.levels = self.levels.max(level);
    }

    fn cost(&self, callees: &[Cost]) -> Cost {
        let mut cost = Cost { nodes: self.nodes, levels: self.levels, calls_deep: 0 };
        for (callee, calls) in &self.calls {
            let callee = callees[*callee];
            cost.nodes = cost.nodes.saturating_add(calls.count.saturating_mul(callee.nodes));
            // A function's outermost nodes take the place of the call, on its level.
            cost.levels = cost.levels.max(calls.level_max + callee.levels.saturating_sub(1));
            cost.calls_deep = cost.calls_deep.max(callee.calls_deep + 1);
        }
        cost
    }
}

/// The cost of `graphs` together, given the bodies of the functions and their names.
pub(super) fn expand(
    graphs: &[Body],
    functions: &[Body],
    names: &[String],
    limits: &Limits,
) -> Result<Cost, OnnxError> {
    let costs = function_costs(functions, names)?;
    let mut total = Cost::default();
    for cost in graphs.iter().map(|body| body.cost(&costs)) {
        total.nodes = total.nodes.saturating_add(cost.nodes);
        total.levels = total.levels.max(cost.levels);
        total.calls_deep = total.calls_deep.max(cost.calls_deep);
    }
    // Also a function that nothing calls is prepared by engines.
    let nodes = costs.iter().map(|cost| cost.nodes).fold(total.nodes, u64::max);
    let levels = costs.iter().map(|cost| cost.levels).fold(total.levels, usize::max);
    let calls_deep = costs.iter().map(|cost| cost.calls_deep).fold(total.calls_deep, usize::max);
    if nodes > limits.expanded_nodes {
        return Err(OnnxError::Expansion { nodes, max: limits.expanded_nodes });
    }
    at_most("levels of nested function calls", calls_deep, limits.call_levels)?;
    at_most("levels of nested graphs", levels, limits.graph_levels)?;
    Ok(total)
}

fn function_costs(functions: &[Body], names: &[String]) -> Result<Vec<Cost>, OnnxError> {
    let mut callers = vec![Vec::new(); functions.len()];
    let mut callees_left = vec![0usize; functions.len()];
    for (caller, body) in functions.iter().enumerate() {
        callees_left[caller] = body.calls.len();
        for callee in body.calls.keys() {
            callers[*callee].push(caller);
        }
    }
    let mut costs = vec![Cost::default(); functions.len()];
    let mut ready: Vec<_> =
        (0..functions.len()).filter(|index| callees_left[*index] == 0).collect();
    let mut done = 0;
    while let Some(index) = ready.pop() {
        done += 1;
        costs[index] = functions[index].cost(&costs);
        for caller in &callers[index] {
            callees_left[*caller] -= 1;
            if callees_left[*caller] == 0 {
                ready.push(*caller);
            }
        }
    }
    if done < functions.len() {
        let function = shown(&names[on_a_cycle(functions, &callees_left)]);
        return Err(OnnxError::FunctionCycle { function });
    }
    Ok(costs)
}

/// A function that calls itself, perhaps through others: each one left over calls another one left over, so
/// whoever follows the calls long enough walks in a circle.
fn on_a_cycle(functions: &[Body], callees_left: &[usize]) -> usize {
    let left = |index: &usize| callees_left[*index] > 0;
    let mut index = (0..functions.len()).find(left).expect("a function is left over");
    for _ in 0..functions.len() {
        let callees = functions[index].calls.keys().copied();
        index = callees.filter(left).min().expect("it waits for a callee that is left over");
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(nodes: usize, calls: &[(usize, usize)]) -> Body {
        let mut body = Body::default();
        body.reach(1);
        (0..nodes).for_each(|_| body.count(1, None));
        for (callee, count) in calls {
            (0..*count).for_each(|_| body.count(1, Some(*callee)));
        }
        body
    }

    fn nodes(graph: &Body, functions: &[Body]) -> Result<u64, String> {
        let names: Vec<_> = (0..functions.len()).map(|index| format!("f{index}")).collect();
        let graphs = std::slice::from_ref(graph);
        expand(graphs, functions, &names, &Limits::default())
            .map(|cost| cost.nodes)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_call_costs_itself_and_its_callee() {
        assert_eq!(nodes(&body(2, &[]), &[]), Ok(2));
        assert_eq!(nodes(&body(1, &[(0, 3)]), &[body(5, &[])]), Ok(1 + 3 * 6));
        let nested = [body(1, &[(1, 2)]), body(4, &[])];
        assert_eq!(nodes(&body(0, &[(0, 2), (1, 1)]), &nested), Ok(2 * (1 + 1 + 2 * 5) + 5));
    }

    #[test]
    fn expansion_is_capped_without_being_carried_out() {
        let bomb = |levels: usize| -> Vec<_> {
            (1..=levels)
                .map(|next| if next < levels { body(0, &[(next, 10)]) } else { body(1, &[]) })
                .collect()
        };
        assert_eq!(nodes(&body(0, &[(0, 1)]), &bomb(4)), Ok(1 + 10 + 100 + 1000 + 1000));
        let refused =
            "function calls expand the model to 21111111 nodes, at most 1000000 are allowed";
        assert_eq!(nodes(&body(0, &[(0, 1)]), &bomb(8)).unwrap_err(), refused);
        assert_eq!(
            nodes(&body(0, &[]), &bomb(8)).unwrap_err(),
            refused.replace("21111111", "21111110")
        );
        assert!(
            nodes(&body(0, &[(0, 1)]), &bomb(60)).unwrap_err().contains("18446744073709551615")
        );
        let empty: Vec<_> = bomb(7).into_iter().chain([body(0, &[])]).collect();
        assert!(nodes(&body(0, &[(0, 1)]), &empty).is_err(), "calls of empty functions count too");
    }

    #[test]
    fn recursion_is_found_and_named() {
        let check = |functions: &[Body], name: &str| {
            let error = nodes(&body(1, &[]), functions).unwrap_err();
            let expected = format!(
                "function `{name}` calls itself, perhaps through others; ONNX functions cannot be recursive"
            );
            assert_eq!(error, expected);
        };
        check(&[body(1, &[(0, 1)])], "f0");
        check(&[body(1, &[(1, 1)]), body(0, &[(2, 1)]), body(0, &[(1, 1)])], "f1");
        check(&[body(1, &[]), body(1, &[(2, 1), (0, 1)]), body(1, &[(1, 1)])], "f2");
    }

    #[test]
    fn call_chains_are_bounded() {
        let chain = |length: usize| -> Vec<_> {
            (1..=length)
                .map(|next| if next < length { body(0, &[(next, 1)]) } else { body(1, &[]) })
                .collect()
        };
        assert_eq!(nodes(&body(0, &[(0, 1)]), &chain(64)), Ok(65));
        let refused =
            "too many levels of nested function calls: at least 65, at most 64 are allowed";
        assert_eq!(nodes(&body(0, &[(0, 1)]), &chain(65)).unwrap_err(), refused);
    }
}
