//! Runs step by step, and in any order against a reference that tells everything from the definition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use smallvec::SmallVec;

use super::Graph;
use super::run::{Run, Ticket};
use crate::model_config::ensemble::{EnsembleScheduling, EnsembleStep};

/// A step as tests write it: what it takes, what it makes, whether it may answer more than once.
type Written<'a> = (&'a [&'a str], &'a [&'a str], bool);

fn scheduling(steps: &[Written<'_>]) -> EnsembleScheduling {
    let map = |names: &[&str]| -> BTreeMap<String, String> {
        names.iter().enumerate().map(|(index, name)| (format!("{index:03}"), (*name).to_owned())).collect()
    };
    let step = |(index, (inputs, outputs, _)): (usize, &Written<'_>)| EnsembleStep {
        model: format!("m{index}"),
        version: None,
        inputs: map(inputs),
        outputs: map(outputs),
    };
    EnsembleScheduling { steps: steps.iter().enumerate().map(step).collect(), max_inflight_requests: 0 }
}

fn graph(inputs: &[&str], outputs: &[&str], steps: &[Written<'_>]) -> Arc<Graph> {
    let decoupled: Vec<_> = steps.iter().map(|step| step.2).collect();
    Arc::new(Graph::new(&scheduling(steps), inputs, outputs, &decoupled).unwrap())
}

fn start(run: &mut Run<String>) -> (Ticket, Vec<String>) {
    let (ticket, inputs) = run.next_ready().unwrap();
    (ticket, inputs.into_iter().map(|input| input.unwrap_or_default()).collect())
}

fn give(run: &mut Run<String>, ticket: Ticket, values: &[&str]) {
    run.answered(ticket, values.iter().map(|value| Some((*value).to_owned())));
}

fn answer(run: &mut Run<String>) -> Option<Vec<String>> {
    run.next_answer().map(|answer| answer.into_iter().map(Option::unwrap_or_default).collect())
}

#[test]
fn steps_run_as_soon_as_their_tensors_are_there_and_tensors_go_with_their_last_reader() {
    let graph =
        graph(&["x"], &["z"], &[(&["x"], &["a"], false), (&["x"], &["b"], false), (&["a", "b"], &["z"], false)]);
    let mut run = Run::new(graph, [Some("x".to_owned())]);
    assert_eq!(run.held(), 1);
    let ((first, _), (second, _)) = (start(&mut run), start(&mut run));
    assert_eq!((first.step(), second.step(), run.held()), (0, 1, 0));
    assert!(run.next_ready().is_none());
    give(&mut run, second, &["b"]);
    run.ended(second);
    assert!(run.next_ready().is_none());
    give(&mut run, first, &["a"]);
    run.ended(first);
    assert_eq!(run.held(), 2);
    let (third, inputs) = start(&mut run);
    assert_eq!((inputs, run.held()), (vec!["a".to_owned(), "b".to_owned()], 0));
    give(&mut run, third, &["z"]);
    run.ended(third);
    assert!(!run.is_over());
    assert_eq!(answer(&mut run), Some(vec!["z".to_owned()]));
    assert!(run.is_over() && run.held() == 0);
}

#[test]
fn each_answer_of_a_decoupled_step_flows_down_with_what_was_beside_it_and_leaves_in_order() {
    let steps: &[Written<'_>] = &[(&["x"], &["t"], true), (&["x"], &["late"], false), (&["t", "late"], &["y"], false)];
    let mut run = Run::new(graph(&["x"], &["y", "late"], steps), [Some("x".to_owned())]);
    let ((splitter, _), (beside, _)) = (start(&mut run), start(&mut run));
    give(&mut run, splitter, &["t0"]);
    give(&mut run, splitter, &["t1"]);
    assert_eq!(run.below(splitter), 2);
    assert!(run.next_ready().is_none());
    give(&mut run, beside, &["late"]);
    run.ended(beside);
    let ((zero, inputs), (one, _)) = (start(&mut run), start(&mut run));
    assert_eq!(inputs, ["t0", "late"]);
    give(&mut run, one, &["y1"]);
    run.ended(one);
    assert_eq!(answer(&mut run), None);
    give(&mut run, zero, &["y0"]);
    run.ended(zero);
    assert_eq!(answer(&mut run), Some(vec!["y0".to_owned(), "late".to_owned()]));
    assert_eq!(answer(&mut run), Some(vec!["y1".to_owned(), "late".to_owned()]));
    assert_eq!((run.below(splitter), run.held(), run.is_over()), (0, 1, false));
    run.ended(splitter);
    assert!(run.is_over() && run.held() == 0);
}

#[test]
fn a_decoupled_step_without_answers_ends_the_run_without_one() {
    let mut run = Run::new(graph(&["x"], &["y"], &[(&["x"], &["y"], true)]), [Some("x".to_owned())]);
    let (ticket, _) = start(&mut run);
    run.ended(ticket);
    assert!(run.is_over() && answer(&mut run).is_none());
}

#[test]
fn an_input_that_is_left_out_is_no_reason_to_wait() {
    let mut run = Run::new(graph(&["x", "o"], &["y"], &[(&["x", "o"], &["y"], false)]), [Some("x".to_owned()), None]);
    let (_, inputs) = run.next_ready().unwrap();
    assert_eq!(inputs.to_vec(), [Some("x".to_owned()), None]);
}

#[test]
fn decoupled_steps_side_by_side_are_refused() {
    let steps: &[Written<'_>] = &[(&["x"], &["a"], true), (&["x"], &["b"], true), (&["a", "b"], &["y"], false)];
    let error = Graph::new(&scheduling(steps), &["x"], &["y"], &[true, true, false]).unwrap_err();
    assert!(error.to_string().contains("side by side"), "{error}");
}

/// An ensemble as proptest makes it: steps take tensors that are there before them.
#[derive(Clone, Debug)]
struct Made {
    inputs: Vec<String>,
    outputs: Vec<String>,
    steps: Vec<(Vec<String>, Vec<String>, bool)>,
}

fn made() -> impl Strategy<Value = Made> {
    let step = (proptest::collection::vec(any::<prop::sample::Index>(), 1..4), 1_usize..3, prop::bool::weighted(0.3));
    let steps = proptest::collection::vec(step, 1..7);
    (1_usize..3, steps, proptest::collection::vec(any::<prop::sample::Index>(), 1..4)).prop_map(
        |(inputs, steps, outputs)| {
            let inputs: Vec<String> = (0..inputs).map(|index| format!("in{index}")).collect();
            let mut tensors = inputs.clone();
            let mut written = Vec::new();
            for (index, (takes, makes, decoupled)) in steps.into_iter().enumerate() {
                let takes = takes.into_iter().map(|take| take.get(&tensors).clone()).collect();
                let makes: Vec<String> = (0..makes).map(|output| format!("t{index}_{output}")).collect();
                tensors.extend(makes.iter().cloned());
                written.push((takes, makes, decoupled));
            }
            let from = tensors.split_off(inputs.len());
            let mut outputs: Vec<String> = outputs.into_iter().map(|output| output.get(&from).clone()).collect();
            outputs.sort_unstable();
            outputs.dedup();
            Made { inputs, outputs, steps: written }
        },
    )
}

/// The slow reference: everything is looked up by name and told from the definition.
impl Made {
    fn maker(&self, tensor: &str) -> Option<usize> {
        self.steps.iter().position(|(_, makes, _)| makes.iter().any(|made| made == tensor))
    }

    /// The steps above a step.
    fn above(&self, step: usize) -> BTreeSet<usize> {
        let direct: Vec<usize> = self.steps[step].0.iter().filter_map(|tensor| self.maker(tensor)).collect();
        direct.iter().copied().chain(direct.iter().flat_map(|other| self.above(*other))).collect()
    }

    fn level_of_step(&self, step: usize) -> usize {
        self.above(step).into_iter().filter(|other| self.steps[*other].2).count()
    }

    fn level(&self, tensor: &str) -> usize {
        self.maker(tensor).map_or(0, |step| self.level_of_step(step) + usize::from(self.steps[step].2))
    }

    fn depth(&self) -> usize {
        self.outputs.iter().map(|output| self.level(output)).max().unwrap()
    }

    fn stands_in_line(&self) -> bool {
        let decoupled: Vec<usize> = (0..self.steps.len()).filter(|step| self.steps[*step].2).collect();
        decoupled.iter().all(|one| {
            decoupled
                .iter()
                .all(|other| one == other || self.above(*one).contains(other) || self.above(*other).contains(one))
        })
    }

    fn splitter(&self, level: usize) -> Option<usize> {
        (0..self.steps.len()).find(|step| self.steps[*step].2 && self.level_of_step(*step) == level)
    }

    /// The value of a tensor in the frame of these answers.
    fn value(&self, tensor: &str, path: &[usize]) -> String {
        let Some(step) = self.maker(tensor) else { return tensor.to_owned() };
        let inputs: Vec<_> = self.steps[step].0.iter().map(|input| self.value(input, path)).collect();
        let answer = if self.steps[step].2 { format!("#{}", path[self.level_of_step(step)]) } else { String::new() };
        format!("{tensor}({}){answer}", inputs.join(","))
    }

    /// How many answers a decoupled step gives, told from what it takes.
    fn count(inputs: &[String]) -> usize {
        inputs.iter().map(String::len).sum::<usize>() % 4
    }

    /// The paths of all frames of a level, in order.
    fn paths(&self, level: usize) -> Vec<Vec<usize>> {
        let Some(above) = level.checked_sub(1) else { return vec![Vec::new()] };
        let splitter = self.splitter(above).unwrap();
        let mut paths = Vec::new();
        for path in self.paths(above) {
            let inputs: Vec<_> = self.steps[splitter].0.iter().map(|input| self.value(input, &path)).collect();
            paths.extend((0..Self::count(&inputs)).map(|answer| [path.as_slice(), &[answer]].concat()));
        }
        paths
    }

    fn answers(&self) -> Vec<Vec<String>> {
        let answer = |path: Vec<usize>| self.outputs.iter().map(|output| self.value(output, &path)).collect();
        self.paths(self.depth()).into_iter().map(answer).collect()
    }
}

/// What has happened in one frame, by its path.
#[derive(Default)]
struct Seen {
    there: BTreeSet<String>,
    started: BTreeSet<usize>,
    splitter_ended: bool,
}

/// How many references should be held, told from what has happened.
fn held(made: &Made, seen: &BTreeMap<Vec<usize>, Seen>, given: usize) -> usize {
    let (depth, mut sum, mut ready) = (made.depth(), 0, 0);
    for (path, frame) in seen {
        let level = path.len();
        let is_there =
            |tensor: &String| made.level(tensor) <= level && seen[&path[..made.level(tensor)]].there.contains(tensor);
        let complete = level == depth && made.outputs.iter().all(is_there);
        ready += usize::from(complete);
        let tensors = made.inputs.iter().chain(made.steps.iter().flat_map(|(_, makes, _)| makes));
        for tensor in tensors.filter(|tensor| is_there(tensor)) {
            let readers = (0..made.steps.len()).filter(|step| made.steps[*step].0.contains(tensor));
            let mut levels = readers.map(|step| (step, made.level_of_step(step)));
            let is_output = made.outputs.contains(tensor);
            let here = levels.clone().any(|(step, of)| of == level && !frame.started.contains(&step))
                || (is_output && level == depth && !complete);
            let below = levels.any(|(_, of)| of > level) || (is_output && depth > level);
            let open = made.splitter(level).is_some() && !frame.splitter_ended;
            sum += usize::from(here || (below && open));
        }
    }
    sum + (ready - given) * made.outputs.len()
}

proptest! {
    #[test]
    fn a_run_does_what_the_definition_says_in_whatever_order_steps_end(made in made(), choices in proptest::collection::vec(any::<u8>(), 400)) {
        let steps: Vec<(Vec<&str>, Vec<&str>, bool)> = made.steps.iter()
            .map(|(takes, makes, decoupled)| (takes.iter().map(String::as_str).collect(), makes.iter().map(String::as_str).collect(), *decoupled))
            .collect();
        let written: Vec<Written<'_>> = steps.iter().map(|(takes, makes, decoupled)| (takes.as_slice(), makes.as_slice(), *decoupled)).collect();
        let inputs: Vec<&str> = made.inputs.iter().map(String::as_str).collect();
        let outputs: Vec<&str> = made.outputs.iter().map(String::as_str).collect();
        let decoupled: Vec<bool> = made.steps.iter().map(|step| step.2).collect();
        let graph = Graph::new(&scheduling(&written), &inputs, &outputs, &decoupled);
        prop_assert_eq!(graph.is_ok(), made.stands_in_line());
        let Ok(graph) = graph else { return Ok(()) };
        let expected = made.answers();
        let mut run = Run::new(Arc::new(graph), made.inputs.iter().cloned().map(Some));
        let mut seen: BTreeMap<Vec<usize>, Seen> = BTreeMap::new();
        seen.entry(Vec::new()).or_default().there.extend(made.inputs.iter().cloned());
        // What runs: where, with what, and how many answers it has given.
        let mut running: Vec<(Ticket, Vec<usize>, Vec<String>, usize)> = Vec::new();
        let mut given: Vec<Vec<String>> = Vec::new();
        let mut executed = 0;
        // Whatever the choices, each comes to every kind of step in time.
        let mut choices = choices.into_iter().cycle().zip(0_usize..).map(|(choice, tick)| choice.wrapping_add((tick % 251) as u8));
        loop {
            prop_assert_eq!(run.held(), held(&made, &seen, given.len()));
            let choice = choices.next().unwrap();
            if choice % 3 == 0 && let Some(answer) = answer(&mut run) {
                given.push(answer);
                continue;
            }
            if choice % 2 == 0 && let Some((ticket, inputs)) = run.next_ready() {
                let inputs: Vec<String> = inputs.into_iter().map(|input| input.unwrap()).collect();
                let level = made.level_of_step(ticket.step());
                // The frame is told from what the step was given.
                let is_here = |path: &&Vec<usize>| {
                    let value = |input: &String| made.value(input, path);
                    path.len() == level
                        && made.steps[ticket.step()].0.iter().map(value).eq(inputs.iter().cloned())
                        && !seen[*path].started.contains(&ticket.step())
                };
                let path = seen.keys().find(is_here).cloned();
                prop_assert!(path.is_some(), "step {} was given {inputs:?}", ticket.step());
                let path = path.unwrap();
                seen.get_mut(&path).unwrap().started.insert(ticket.step());
                running.push((ticket, path, inputs, 0));
                executed += 1;
                continue;
            }
            if running.is_empty() {
                if run.is_over() { break; }
                continue;
            }
            let at = usize::from(choice) % running.len();
            let (ticket, path, inputs, answers) = running[at].clone();
            let step = &made.steps[ticket.step()];
            let all = if step.2 { Made::count(&inputs) } else { 1 };
            if answers == all {
                run.ended(ticket);
                running.swap_remove(at);
                if step.2 { seen.get_mut(&path).unwrap().splitter_ended = true; }
                continue;
            }
            let into = if step.2 { [path.as_slice(), &[answers]].concat() } else { path };
            let values: SmallVec<[Option<String>; 4]> = step.1.iter().map(|tensor| Some(made.value(tensor, &into))).collect();
            run.answered(ticket, values);
            seen.entry(into).or_default().there.extend(step.1.iter().cloned());
            running[at].3 += 1;
        }
        prop_assert_eq!(given, expected);
        prop_assert_eq!(run.held(), 0);
        let frames: usize = (0..made.steps.len()).map(|step| made.paths(made.level_of_step(step)).len()).sum();
        prop_assert_eq!(executed, frames, "each step ran once in each frame");
    }
}
