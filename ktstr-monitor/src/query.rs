//! Questions about a kernel, answered from its memory.
//!
//! A path names a place in the tree that a capture shows: `rq[*].nr_running`, `rq[0].scx`,
//! `dsq[*].id`, `cgroups[*].usage_ns`. `*` stands for every item of a list or member of a structure,
//! a number for one item. Only the parts that the path begins with are read.

use ktstr_proto::capture::Question;
use ktstr_proto::link::chain;
use thiserror::Error;

use crate::bpf;
use crate::kernel::state::{KernelState, Parts};
use crate::kernel::task::Task;
use crate::kernel::{LiveKernel, Profile};
use crate::kernel_place;
use crate::mem::GuestMem;
use crate::node::Node;
use crate::structure;

/// A longer path is no path.
const MAX_PATH: usize = 1024;
/// An answer must fit into one message, as JSON and as text.
const MAX_ANSWER: usize = 12 << 20;

/// Why a question has no answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QueryError {
    /// It is no path.
    #[error("`{path}` is no path: {what}")]
    Syntax {
        /// The path.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is no such place.
    #[error("there is no `{step}` in `{path}`: {there}")]
    NoSuch {
        /// The path.
        path: String,
        /// The step that leads nowhere.
        step: String,
        /// What there is instead.
        there: String,
    },
    /// No such task.
    #[error("the guest has no task {pid} now")]
    NoTask {
        /// The thread id asked for.
        pid: i32,
    },
    /// No such map, or no such place in it.
    #[error("{why}")]
    Bpf {
        /// Why not.
        why: String,
    },
    /// The answer is too large.
    #[error("the answer has {len} bytes, more than the {MAX_ANSWER} of a message: ask for less, or capture")]
    TooLarge {
        /// Its length.
        len: usize,
    },
}

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Nth(usize),
    All,
}

/// Which parts have to be read for a question.
pub fn parts(question: &Question) -> Parts {
    match question {
        Question::Tasks | Question::Task(_) => Parts { tasks: true, ..Parts::NONE },
        Question::Dsqs => Parts { tasks: true, dsqs: true, ..Parts::NONE },
        Question::Scx
        | Question::Map(..)
        | Question::Bpf
        | Question::Modules
        | Question::Structure(_)
        | Question::Kernel(..) => Parts::NONE,
        Question::Cgroups => Parts { cgroups: true, ..Parts::NONE },
        Question::Path(path) => match path.split(['.', '[']).next().unwrap_or_default() {
            // Tasks on lists are shown with their names.
            "rq" => Parts { cpus: true, tasks: true, ..Parts::NONE },
            "dsq" => Parts { tasks: true, dsqs: true, ..Parts::NONE },
            "tasks" | "unreadable_tasks" => Parts { tasks: true, ..Parts::NONE },
            "cgroups" | "psi" => Parts { cgroups: true, ..Parts::NONE },
            "modules" => Parts { modules: true, ..Parts::NONE },
            "scx" | "kernel" | "jiffies" | "hz" => Parts::NONE,
            _ => Parts::ALL,
        },
    }
}

/// Reads what is needed and answers.
pub fn answer(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMem,
    question: &Question,
) -> Result<(Node, std::time::Duration), QueryError> {
    if let Question::Path(path) = question {
        // Wrong paths are refused before anything is read for them.
        parse(path)?;
    }
    let began = std::time::Instant::now();
    match question {
        Question::Map(name, path) => {
            let node = bpf::answer_map(profile, live, mem, name, path.as_deref());
            return Ok((node.map_err(|why| QueryError::Bpf { why })?, began.elapsed()));
        }
        Question::Bpf => return Ok((bpf::answer_all(profile, live, mem), began.elapsed())),
        Question::Modules => return Ok((structure::modules(profile, live, mem), began.elapsed())),
        Question::Kernel(target, width) => {
            let node = kernel_place::read(profile, live, mem, target, *width);
            return Ok((node.map_err(|e| QueryError::Bpf { why: chain(&e) })?, began.elapsed()));
        }
        Question::Structure(asked) => {
            let node = structure::answer(profile, live, mem, asked);
            return Ok((node.map_err(|e| QueryError::Bpf { why: chain(&e) })?, began.elapsed()));
        }
        _ => {}
    }
    let state = KernelState::read(profile, live, mem, parts(question));
    Ok((of_state(&state, question)?, state.took))
}

/// Answers from what was read.
pub fn of_state(state: &KernelState, question: &Question) -> Result<Node, QueryError> {
    let member = |name: &str| state.node().get(name).cloned().unwrap_or(Node::Null);
    match question {
        Question::Tasks => Ok(super::kernel::state::walk(&state.tasks, |task| state.brief_task_node(task))),
        Question::Task(pid) => {
            let is_it = |task: &&Task| task.copy.pid == Ok(*pid);
            let task = state.tasks.items.iter().find(is_it).ok_or(QueryError::NoTask { pid: *pid })?;
            Ok(task.node())
        }
        Question::Dsqs => Ok(member("dsq")),
        Question::Scx => Ok(member("scx")),
        Question::Cgroups => Ok(member("cgroups")),
        Question::Path(path) => select(&state.node(), path),
        // Answered from the guest's memory, see `answer`.
        Question::Map(..)
        | Question::Bpf
        | Question::Modules
        | Question::Structure(_)
        | Question::Kernel(..) => {
            Err(QueryError::Bpf { why: "a capture of the kernel's state holds no types".into() })
        }
    }
}

/// What lies at `path` in `node`.
pub fn select(node: &Node, path: &str) -> Result<Node, QueryError> {
    follow(node, &parse(path)?, path)
}

/// The answer as JSON and as text, if they are not too large for a message.
pub fn to_message(node: &Node) -> Result<(String, String), QueryError> {
    // Names are texts and numbers are finite: nothing in a tree is beyond JSON.
    let json = serde_json::to_string(node).unwrap_or_else(|_| "null".to_owned());
    let text = node.text();
    let len = json.len() + text.len();
    if len > MAX_ANSWER { Err(QueryError::TooLarge { len }) } else { Ok((json, text)) }
}

fn parse(path: &str) -> Result<Vec<Step>, QueryError> {
    let wrong = |what| QueryError::Syntax { path: path.chars().take(80).collect(), what };
    if path.len() > MAX_PATH {
        return Err(wrong("it is too long"));
    }
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, mut rest) = part.split_at(part.find('[').unwrap_or(part.len()));
        match name {
            "" if rest.is_empty() || !steps.is_empty() => {
                return Err(wrong("a name is missing between its dots"));
            }
            "" => {}
            "*" => steps.push(Step::All),
            name => steps.push(Step::Name(name.to_owned())),
        }
        while !rest.is_empty() {
            let inside = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let (index, behind) = inside.ok_or_else(|| wrong("a bracket is not closed"))?;
            steps.push(match index {
                "*" => Step::All,
                nth => Step::Nth(nth.parse().map_err(|_| wrong("an index is a number or `*`"))?),
            });
            rest = behind;
        }
    }
    Ok(steps)
}

fn follow(node: &Node, steps: &[Step], path: &str) -> Result<Node, QueryError> {
    let Some((step, rest)) = steps.split_first() else { return Ok(node.clone()) };
    let nowhere = |step: String| {
        let there = match node {
            Node::Map(members) => {
                let names: Vec<_> = members.iter().map(|(name, _)| name.as_ref()).collect();
                format!("there are {}", names.join(", "))
            }
            Node::List(items) => format!("a list of {} items", items.len()),
            leaf => leaf.leaf(),
        };
        Err(QueryError::NoSuch { path: path.to_owned(), step, there })
    };
    match (step, node) {
        // Why something is missing is the answer to every question about what is in it.
        (_, Node::Absent(_) | Node::Unreadable(_) | Node::Null) => Ok(node.clone()),
        (Step::Name(name), _) => match node.get(name) {
            Some(inner) => follow(inner, rest, path),
            None => nowhere(name.clone()),
        },
        (Step::Nth(nth), Node::List(items)) => match items.get(*nth) {
            Some(item) => follow(item, rest, path),
            None => nowhere(format!("[{nth}]")),
        },
        (Step::All, Node::List(items)) => {
            items.iter().map(|item| follow(item, rest, path)).collect::<Result<_, _>>().map(Node::List)
        }
        (Step::All, Node::Map(members)) => {
            let each = members.iter().map(|(name, inner)| Ok((name.clone(), follow(inner, rest, path)?)));
            each.collect::<Result<_, _>>().map(Node::Map)
        }
        (Step::Nth(nth), _) => nowhere(format!("[{nth}]")),
        (Step::All, _) => nowhere("*".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Node {
        let rq = |nr: i32| Node::nested([("nr_running", nr.into()), ("cfs.load.weight", (nr * 10).into())]);
        let gone = Node::Map(vec![("rq".into(), Node::Unreadable("torn".into()))]);
        Node::map([("rq", Node::List(vec![rq(1), rq(2)])), ("gone", gone)])
    }

    fn json(path: &str) -> serde_json::Value {
        serde_json::to_value(select(&tree(), path).unwrap()).unwrap()
    }

    #[test]
    fn paths_select_one_all_or_a_structure() {
        assert_eq!(json("rq[*].nr_running"), serde_json::json!([1, 2]));
        assert_eq!(json("rq[1].cfs.load.weight"), serde_json::json!(20));
        assert_eq!(json("rq[0].cfs"), serde_json::json!({"load": {"weight": 10}}));
        assert_eq!(json("rq[0].cfs.*.weight"), serde_json::json!({"load": 10}));
        assert_eq!(json("gone.rq.nr_running"), serde_json::json!({"unreadable": "torn"}));
    }

    #[test]
    fn an_answer_beyond_a_message_is_refused() {
        let long = Node::List((0..2_000_000).map(|n: u32| n.into()).collect());
        assert!(matches!(to_message(&long), Err(QueryError::TooLarge { .. })));
        assert_eq!(to_message(&Node::Int(7)), Ok(("7".into(), "7".into())));
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        let error = |path| select(&tree(), path).unwrap_err().to_string();
        assert_eq!(error("rq[7]"), "there is no `[7]` in `rq[7]`: a list of 2 items");
        assert_eq!(error("rq[0].nr"), "there is no `nr` in `rq[0].nr`: there are nr_running, cfs");
        for path in ["", "rq..x", "rq[", "rq[x]", ".rq", "rq.[0]"] {
            assert!(matches!(select(&tree(), path), Err(QueryError::Syntax { .. })), "{path}");
        }
    }
}
