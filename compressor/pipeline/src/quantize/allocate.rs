//! Chooses one scheme for every tensor, so that all fit into a budget of bytes and cost the least: the multiple-choice knapsack problem.
//!
//! Method: dynamic programming over tensors, where a partial choice is dropped if another has neither more bytes nor more cost, or if
//! the linear relaxation of the tensors still to come shows that it can't end below a known solution (Dyer, Riha and Walker, A hybrid
//! dynamic programming/branch-and-bound algorithm for the multiple-choice knapsack problem, J. Comput. Appl. Math. 58, 1995). The
//! relaxation takes the steps along each tensor's convex hull by cost saved per byte (Zemel 1980, Dyer 1984), and its slope rules out
//! choices before the search (Pisinger, A minimal algorithm for the multiple-choice knapsack problem, EJOR 83, 1995).

/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Bytes it takes.
    pub bytes: u64,
    /// What it costs in quality, such as the increase of the KL divergence; finite, 0 or more.
    pub cost: f64,
}

/// One candidate for every tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The index of each tensor's candidate.
    pub choices: Vec<usize>,
    /// Bytes of all.
    pub bytes: u64,
    /// Cost of all.
    pub cost: f64,
    /// No choice inside the budget costs less than `cost - gap`. 0 where `cost` is proven to be the least.
    pub gap: f64,
}

/// Why nothing can be chosen. Tensors and candidates are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum AllocationError {
    /// A tensor that can't be stored.
    #[error("tensor {tensor} has no candidates")]
    NoCandidates {
        /// Its place.
        tensor: usize,
    },
    /// A cost that no measurement can have.
    #[error("candidate {candidate} of tensor {tensor} costs {cost}; a cost is a finite number, 0 or more")]
    Cost {
        /// The tensor's place.
        tensor: usize,
        /// The candidate's place.
        candidate: usize,
        /// Its cost.
        cost: f64,
    },
    /// A budget below the smallest candidates.
    #[error("the smallest candidates take {least} bytes, the budget is {budget}")]
    Budget {
        /// Bytes of the smallest candidates; may be more than a file can have.
        least: u128,
        /// The budget.
        budget: u64,
    },
}

/// Partial choices that a search makes at most, about: in the worst case one to two seconds, and 64 MB for the way back.
const MOST_STATES: usize = 1 << 24;

/// Chooses a candidate for every tensor: of all choices with at most `budget` bytes one of least cost, of these one with the fewest
/// bytes, of these the one whose first tensor has the earliest candidate, then the second, and so on.
///
/// That is proven unless it takes more than 2²⁴ partial choices, which hundreds of measured tensors are far from. Then the search
/// goes on with the most promising ones, and [`gap`](Allocation::gap) says what is proven of the cost. Equal input gives equal
/// output. Costs are rounded to whole units, so that sums are exact: with a thousand tensors, differences below 1e-11 of the whole cost
/// may count as none.
///
/// # Errors
/// [`AllocationError`] on a tensor without candidates, on a negative, infinite or undefined cost, and on a budget below the least bytes.
pub fn allocate(tensors: &[Vec<Candidate>], budget: u64) -> Result<Allocation, AllocationError> {
    allocate_within(MOST_STATES, tensors, budget)
}

fn allocate_within(most_states: usize, tensors: &[Vec<Candidate>], budget: u64) -> Result<Allocation, AllocationError> {
    for (tensor, candidates) in tensors.iter().enumerate() {
        if candidates.is_empty() {
            return Err(AllocationError::NoCandidates { tensor });
        }
        if let Some(candidate) = candidates.iter().position(|it| !(it.cost >= 0.0 && it.cost.is_finite())) {
            return Err(AllocationError::Cost { tensor, candidate, cost: candidates[candidate].cost });
        }
    }
    let smallest = |candidates: &Vec<Candidate>| candidates.iter().map(|it| u128::from(it.bytes)).min();
    let least: u128 = tensors.iter().filter_map(smallest).sum();
    if least > u128::from(budget) {
        return Err(AllocationError::Budget { least, budget });
    }

    // What costs more than a whole solution is in no better one, and would only make the unit coarse.
    let cost = |choices: &[usize]| -> f64 { tensors.iter().zip(choices).map(|(it, choice)| it[*choice].cost).sum() };
    let first = Problem::new(tensors, budget, f64::INFINITY);
    let ceiling = cost(&first.greedy().choices);
    let mut problem = Problem::new(tensors, budget, ceiling);
    let mut best = problem.greedy();
    let mut bound = problem.bound();
    // Short searches find solutions, which then rule out most of what the next would look at.
    for states in [most_states / 64, most_states / 8, most_states] {
        problem.rule_out(best.cost);
        let open: usize = problem.tensors.iter().map(Vec::len).filter(|choices| *choices > 1).sum();
        let search = problem.search(best.cost, states / open.max(1) + 1);
        best = search.found.unwrap_or(best);
        bound = bound.max(search.dropped.unwrap_or(best.cost).min(best.cost));
        if search.dropped.is_none_or(|dropped| dropped > best.cost) {
            break;
        }
    }
    Ok(Allocation {
        bytes: tensors.iter().zip(&best.choices).map(|(it, choice)| it[*choice].bytes).sum(),
        cost: cost(&best.choices),
        gap: (best.cost - bound) as f64 * problem.unit,
        choices: best.choices,
    })
}

/// The tensors' candidates as far as they matter, costs as integers: sums and comparisons are exact then.
struct Problem {
    /// Of each tensor, more bytes and less cost from one to the next.
    tensors: Vec<Vec<Choice>>,
    budget: u64,
    /// The cost that counts as 1: a power of two.
    unit: f64,
}

#[derive(Clone, Copy)]
struct Choice {
    bytes: u64,
    cost: i64,
    /// Its place among the tensor's candidates.
    candidate: usize,
}

/// A choice for all tensors within the budget.
struct Solution {
    cost: i64,
    choices: Vec<usize>,
}

/// The sum of all tensors' costs stays below 2 to this power, so that its product with bytes fits 128 bits.
const COST_BITS: i32 = 60;

impl Problem {
    /// Leaves out what costs more than `ceiling`, and what another candidate equals or beats in both bytes and cost.
    fn new(tensors: &[Vec<Candidate>], budget: u64, ceiling: f64) -> Self {
        let costs = tensors.iter().flatten().map(|it| it.cost).filter(|cost| *cost <= ceiling);
        let bits = COST_BITS - exponent(costs.fold(0.0, f64::max)) - exponent(tensors.len() as f64);
        // Costs below 1e-280 need no finer unit, and much larger powers are no floats.
        let scale = 2f64.powi(bits.min(1000));
        let undominated = |candidates: &Vec<Candidate>| {
            let choice = |(candidate, it): (usize, &Candidate)| {
                let cost = (it.cost * scale).round() as i64;
                (it.cost <= ceiling).then_some(Choice { bytes: it.bytes, cost, candidate })
            };
            let mut choices: Vec<Choice> = candidates.iter().enumerate().filter_map(choice).collect();
            choices.sort_by_key(|it| (it.bytes, it.cost, it.candidate));
            choices.dedup_by(|next, kept| next.cost >= kept.cost);
            choices
        };
        Self { tensors: tensors.iter().map(undominated).collect(), budget, unit: scale.recip() }
    }

    /// The steps along all convex hulls, those that save the most cost per byte first.
    fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for (tensor, choices) in self.tensors.iter().enumerate() {
            let own = steps.len();
            for to in 1..choices.len() {
                let mut step = Step::new(tensor, choices, to - 1, to);
                // Two steps of which the second saves no less per byte are one.
                while let Some(last) = steps[own..].last().filter(|last| !last.saves_more_than(&step)) {
                    step = Step::new(tensor, choices, last.from, to);
                    steps.pop();
                }
                steps.push(step);
            }
        }
        steps.sort_by(|a, b| b.slope_against(a).cmp(&a.slope_against(b)));
        steps
    }

    /// Takes every step that still fits, from the fewest bytes on.
    fn greedy(&self) -> Solution {
        let mut taken = vec![0; self.tensors.len()];
        let mut left = self.budget - self.tensors.iter().map(|choices| choices[0].bytes).sum::<u64>();
        for step in self.steps() {
            if taken[step.tensor] == step.from && step.bytes <= left {
                taken[step.tensor] = step.to;
                left -= step.bytes;
            }
        }
        let taken = self.tensors.iter().zip(taken).map(|(choices, place)| choices[place]);
        Solution { cost: taken.clone().map(|it| it.cost).sum(), choices: taken.map(|it| it.candidate).collect() }
    }

    /// Leaves out the choices that no solution of at most `cost` can have: a byte is given the price at which the relaxation buys the
    /// last one, and cost and price together are too much.
    fn rule_out(&mut self, cost: i64) {
        let relaxation = Relaxation::new(&self.tensors, &self.steps(), self.budget);
        let left = self.budget - relaxation.bytes;
        let (price, per) = match relaxation.corners.iter().rfind(|corner| corner.bytes <= left) {
            Some(last) if left - last.bytes < last.step_bytes => (i128::from(last.step_saves), i128::from(last.step_bytes)),
            _ => (0, 1),
        };
        let priced = |choice: &Choice| i128::from(choice.cost) * per + i128::from(choice.bytes) * price;
        let least = |choices: &Vec<Choice>| choices.iter().map(priced).min().expect("`new` and this keep one choice at least");
        let sum: i128 = self.tensors.iter().map(least).sum();
        let spare = i128::from(cost) * per + i128::from(self.budget) * price - sum;
        for choices in &mut self.tensors {
            let least = least(choices);
            choices.retain(|choice| priced(choice) - least <= spare);
        }
    }

    /// No solution costs less.
    fn bound(&self) -> i64 {
        let relaxation = Relaxation::new(&self.tensors, &self.steps(), self.budget);
        relaxation.bound(self.budget).expect("the least bytes are within the budget")
    }

    /// Looks for the best solution of at most `cost`, with at most `limit` partial choices after each tensor.
    fn search(&self, cost: i64, limit: usize) -> Search {
        let steps = self.steps();
        let mut states = vec![State { bytes: 0, cost: 0, bound: 0, parent: 0, place: 0 }];
        let mut ways = Vec::new();
        let mut dropped: Option<i64> = None;
        // From the last tensor to the first: of equal sums the one with the earlier candidate here is the one to keep.
        for (tensor, choices) in self.tensors.iter().enumerate().rev() {
            if let [only] = choices[..] {
                for state in &mut states {
                    state.bytes += only.bytes;
                    state.cost += only.cost;
                }
                continue;
            }
            let rest = Relaxation::new(&self.tensors[..tensor], &steps, self.budget);
            let mut next = Vec::with_capacity(states.len() * choices.len());
            for (place, choice) in choices.iter().enumerate() {
                for (parent, state) in states.iter().enumerate() {
                    let Some(bytes) = state.bytes.checked_add(choice.bytes).filter(|bytes| *bytes <= self.budget) else { break };
                    let Some(bound) = rest.bound(self.budget - bytes) else { break };
                    let sum = state.cost + choice.cost;
                    if sum + bound <= cost {
                        next.push(State { bytes, cost: sum, bound: sum + bound, parent: parent as u32, place: place as u32 });
                    }
                }
            }
            next.sort_by_key(|it| (it.bytes, it.cost, choices[it.place as usize].candidate));
            next.dedup_by(|next, kept| next.cost >= kept.cost);
            if next.len() > limit {
                let mut bounds: Vec<i64> = next.iter().map(|it| it.bound).collect();
                let (_, &mut first_dropped, _) = bounds.select_nth_unstable(limit);
                dropped = Some(dropped.map_or(first_dropped, |least| least.min(first_dropped)));
                // Of equal bounds, states of all sizes: those with the fewest bytes alone may all lead nowhere.
                let equal = next.iter().filter(|it| it.bound == first_dropped).count();
                let room = limit - next.iter().filter(|it| it.bound < first_dropped).count();
                let mut at = 0;
                next.retain(|it| {
                    let before = at * room / equal;
                    at += usize::from(it.bound == first_dropped);
                    it.bound < first_dropped || it.bound == first_dropped && at * room / equal > before
                });
            }
            ways.push((tensor, next.iter().map(|it| (it.parent, it.place)).collect::<Vec<_>>()));
            states = next;
        }
        // More bytes, less cost: the last is the best.
        let found = states.last().map(|last| {
            let mut places = vec![0; self.tensors.len()];
            let mut state = states.len() - 1;
            for (tensor, ways) in ways.iter().rev() {
                let (parent, place) = ways[state];
                places[*tensor] = place as usize;
                state = parent as usize;
            }
            let choices = self.tensors.iter().zip(places).map(|(choices, place)| choices[place].candidate).collect();
            Solution { cost: last.cost, choices }
        });
        Search { found, dropped }
    }
}

/// From one choice of a tensor to another, with more bytes and less cost.
struct Step {
    tensor: usize,
    from: usize,
    to: usize,
    bytes: u64,
    saves: i64,
}

impl Step {
    fn new(tensor: usize, choices: &[Choice], from: usize, to: usize) -> Self {
        let (bytes, saves) = (choices[to].bytes - choices[from].bytes, choices[from].cost - choices[to].cost);
        Self { tensor, from, to, bytes, saves }
    }

    /// What it saves per byte, times the bytes of both.
    fn slope_against(&self, other: &Self) -> i128 {
        i128::from(self.saves) * i128::from(other.bytes)
    }

    fn saves_more_than(&self, other: &Self) -> bool {
        self.slope_against(other) > other.slope_against(self)
    }
}

/// What tensors cost at least, for every number of bytes: steps are taken in their order, the last in part.
struct Relaxation {
    /// The fewest bytes.
    bytes: u64,
    /// The cost with these.
    cost: i64,
    corners: Vec<Corner>,
}

/// Where a step begins, counted from the fewest bytes.
struct Corner {
    bytes: u64,
    saved: i64,
    step_bytes: u64,
    step_saves: i64,
}

impl Relaxation {
    /// - `tensors`: the first of those that the steps are of; they need no more than `budget` bytes
    fn new(tensors: &[Vec<Choice>], steps: &[Step], budget: u64) -> Self {
        let (bytes, cost) =
            tensors.iter().fold((0, 0), |(bytes, cost), choices| (bytes + choices[0].bytes, cost + choices[0].cost));
        let mut corners = Vec::new();
        let (mut at, mut saved) = (0, 0);
        for step in steps.iter().filter(|step| step.tensor < tensors.len()) {
            corners.push(Corner { bytes: at, saved, step_bytes: step.bytes, step_saves: step.saves });
            saved += step.saves;
            match step.bytes.checked_add(at).filter(|end| *end <= budget) {
                Some(end) => at = end,
                None => break,
            }
        }
        Self { bytes, cost, corners }
    }

    /// The least cost with at most so many bytes, rounded up; `None` where they are too few.
    fn bound(&self, bytes: u64) -> Option<i64> {
        let left = bytes.checked_sub(self.bytes)?;
        let reached = self.corners.partition_point(|corner| corner.bytes <= left);
        let saved = match self.corners[..reached].last() {
            Some(last) if left - last.bytes < last.step_bytes => {
                let part = (left - last.bytes) as u128 * last.step_saves as u128 / last.step_bytes as u128;
                last.saved + part as i64
            }
            Some(last) => last.saved + last.step_saves,
            None => 0,
        };
        Some(self.cost - saved)
    }
}

/// Choices for some tensors.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    cost: i64,
    /// No solution that begins with it costs less.
    bound: i64,
    /// The state it was made of, among those of the tensor before.
    parent: u32,
    /// The choice that made it.
    place: u32,
}

/// What a search came to.
struct Search {
    found: Option<Solution>,
    /// The least bound of the states that were too many.
    dropped: Option<i64>,
}

/// The least power of two that is larger has this exponent. Below the normal floats, one that is larger.
fn exponent(value: f64) -> i32 {
    (value.to_bits() >> 52) as i32 - 1022
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor<const N: usize>(candidates: [(u64, f64); N]) -> Vec<Candidate> {
        candidates.map(|(bytes, cost)| Candidate { bytes, cost }).to_vec()
    }

    fn proven(choices: impl Into<Vec<usize>>, bytes: u64, cost: f64) -> Result<Allocation, AllocationError> {
        Ok(Allocation { choices: choices.into(), bytes, cost, gap: 0.0 })
    }

    #[test]
    fn two_small_savings_beat_one_that_saves_more_per_byte() {
        // 60 for 6 bytes is 10 a byte, 45 for 5 is 9 a byte; with 10 bytes twice 45 is more.
        let tensors = [tensor([(0, 60.0), (6, 0.0)]), tensor([(0, 45.0), (5, 0.0)]), tensor([(0, 45.0), (5, 0.0)])];
        assert_eq!(allocate(&tensors, 10), proven([0, 1, 1], 10, 60.0));
        assert_eq!(allocate(&tensors, 11), proven([1, 0, 1], 11, 45.0), "105 saved; the first 45 or the second");
        assert_eq!(allocate(&tensors, 9), proven([1, 0, 0], 6, 90.0));
        assert_eq!(allocate(&tensors, 5), proven([0, 0, 1], 5, 105.0));
        assert_eq!(allocate(&tensors, 16), proven([1, 1, 1], 16, 0.0));
    }

    #[test]
    fn a_candidate_above_the_convex_hull_is_chosen_where_the_next_does_not_fit() {
        // From 0 to 8 bytes 1.25 are saved a byte, to 5 bytes 0.8.
        let tensors = [tensor([(0, 10.0), (5, 6.0), (8, 0.0)])];
        assert_eq!(allocate(&tensors, 7), proven([1], 5, 6.0));
        assert_eq!(allocate(&tensors, 8), proven([2], 8, 0.0));
        assert_eq!(allocate(&tensors, 4), proven([0], 0, 10.0));
    }

    #[test]
    fn of_equal_costs_the_fewest_bytes_and_of_these_the_earliest_candidates_are_chosen() {
        let equal = tensor([(9, 1.0), (4, 1.0), (4, 1.0), (4, 2.0)]);
        assert_eq!(allocate(std::slice::from_ref(&equal), 100), proven([1], 4, 1.0));
        let one_of_three = tensor([(2, 1.0), (3, 0.0)]);
        let tensors = [one_of_three.clone(), one_of_three.clone(), one_of_three.clone()];
        assert_eq!(allocate(&tensors, 7), proven([0, 0, 1], 7, 2.0));
        let reversed = tensor([(3, 0.0), (2, 1.0)]);
        assert_eq!(allocate(&[reversed.clone(), reversed, one_of_three], 7), proven([0, 1, 0], 7, 2.0));
    }

    #[test]
    fn no_tensors_need_no_bytes() {
        assert_eq!(allocate(&[], 0), proven([], 0, 0.0));
    }

    #[test]
    fn the_largest_and_smallest_numbers_are_chosen_among() {
        let tensors = [tensor([(u64::MAX - 1, 0.0), (0, 3.0)]), tensor([(u64::MAX, 0.0), (2, 1.0), (1, 2.0)])];
        assert_eq!(allocate(&tensors, u64::MAX), proven([0, 2], u64::MAX, 2.0));
        let tensors = [tensor([(u64::MAX, 1.0)]), tensor([(u64::MAX, 0.0), (0, 1.0)])];
        assert_eq!(allocate(&tensors, u64::MAX), proven([0, 1], u64::MAX, 2.0));
        let tiny = f64::from_bits(1);
        let tensors = [tensor([(1, tiny), (2, 0.0)]), tensor([(1, f64::MAX), (2, 0.0)])];
        assert_eq!(allocate(&tensors, 3), proven([0, 1], 3, tiny));
    }

    #[test]
    fn a_hopeless_candidate_does_not_blur_the_others() {
        let tensors = [tensor([(1, 1e300), (2, 1e-9)]), tensor([(1, 3e-9), (3, 2e-9)]), tensor([(1, 1.5e-9), (3, 1e-9)])];
        assert_eq!(allocate(&tensors, 6).map(|it| it.choices), Ok(vec![1, 1, 0]));
    }

    #[test]
    fn mistakes_are_named() {
        let text = |tensors: &[Vec<Candidate>], budget| allocate(tensors, budget).expect_err("refused").to_string();
        let good = tensor([(10, 1.0), (20, 0.0)]);
        assert_eq!(text(&[good.clone(), vec![]], 99), "tensor 1 has no candidates");
        for (cost, shown) in [(f64::NAN, "NaN"), (-0.5, "-0.5"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf")] {
            assert_eq!(
                text(&[good.clone(), tensor([(1, 0.0), (2, cost)])], 99),
                format!("candidate 1 of tensor 1 costs {shown}; a cost is a finite number, 0 or more"),
            );
        }
        assert_eq!(text(&[good.clone(), good], 19), "the smallest candidates take 20 bytes, the budget is 19");
        let huge = tensor([(u64::MAX, 0.0)]);
        assert_eq!(
            text(&[huge.clone(), huge], u64::MAX),
            "the smallest candidates take 36893488147419103230 bytes, the budget is 18446744073709551615",
        );
    }

    /// Every choice, one after the other; the first of the best.
    fn brute_force(tensors: &[Vec<Candidate>], budget: u64) -> Option<(f64, u64, Vec<usize>)> {
        let mut best: Option<(f64, u64, Vec<usize>)> = None;
        let mut choices = vec![0; tensors.len()];
        loop {
            let chosen = || tensors.iter().zip(&choices).map(|(it, choice)| it[*choice]);
            let (cost, bytes) = (chosen().map(|it| it.cost).sum::<f64>(), chosen().map(|it| it.bytes).sum());
            if bytes <= budget && best.as_ref().is_none_or(|best| (cost, bytes) < (best.0, best.1)) {
                best = Some((cost, bytes, choices.clone()));
            }
            let Some(place) = (0..tensors.len()).rfind(|place| choices[*place] + 1 < tensors[*place].len()) else { return best };
            choices[place] += 1;
            choices[place + 1..].fill(0);
        }
    }

    /// Up to seven tensors of up to five candidates; with a part of the span from the fewest to the most bytes as budget.
    fn problems(
        bytes: impl Strategy<Value = u64>,
        cost: impl Strategy<Value = f64>,
    ) -> impl Strategy<Value = (Vec<Vec<Candidate>>, u64)> {
        let candidate = (bytes, cost).prop_map(|(bytes, cost)| Candidate { bytes, cost });
        let tensors = prop::collection::vec(prop::collection::vec(candidate, 1..=5), 0..=7);
        (tensors, 0.0..1.1).prop_map(|(tensors, part)| {
            let [least, most] = [Iterator::min, Iterator::max].map(|end: fn(_) -> _| {
                tensors.iter().filter_map(|it| end(it.iter().map(|it| it.bytes).collect::<Vec<u64>>().into_iter())).sum::<u64>()
            });
            (tensors, least + ((most - least) as f64 * part) as u64)
        })
    }

    /// With costs whose sums are exact. In the first many sums are equal, in cost and in bytes too.
    fn exact_problems() -> impl Strategy<Value = (Vec<Vec<Candidate>>, u64)> {
        let quarters = |most: u32| (0..most).prop_map(|it| f64::from(it) / 4.0);
        prop_oneof![
            problems(0u64..4, quarters(4)),
            problems(prop_oneof![0u64..8, 0u64..1000], prop_oneof![quarters(1), quarters(8), quarters(4000)]),
        ]
    }

    /// Of two sums of seven costs in different orders and units.
    const ROUNDING: f64 = 1e-13;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_choice_is_the_one_that_brute_force_finds((tensors, budget) in exact_problems()) {
            let (cost, bytes, choices) = brute_force(&tensors, budget).expect("the budget is no less than the least bytes");
            prop_assert_eq!(allocate(&tensors, budget), proven(choices, bytes, cost));
        }

        #[test]
        fn costs_of_any_size_are_least(
            (tensors, budget) in problems(0u64..1000, prop_oneof![0.0..1.0, (-40.0..40.0f64).prop_map(f64::exp2)]),
        ) {
            let (cost, _, _) = brute_force(&tensors, budget).expect("the budget is no less than the least bytes");
            let found = allocate(&tensors, budget).expect("it has a solution");
            prop_assert!(found.bytes <= budget && found.gap == 0.0);
            prop_assert!((found.cost - cost).abs() <= ROUNDING * cost, "{found:?}, brute force {cost}");
        }

        #[test]
        fn a_search_cut_short_says_how_far_from_the_least_it_may_be((tensors, budget) in exact_problems(), states in 0usize..60) {
            let (cost, _, _) = brute_force(&tensors, budget).expect("the budget is no less than the least bytes");
            let found = allocate_within(states, &tensors, budget).expect("it has a solution");
            prop_assert!(found.bytes <= budget);
            prop_assert!(found.cost - found.gap <= cost && cost <= found.cost, "{found:?}, brute force {cost}");
        }
    }

    /// Numbers from 0 to 1, the same each time.
    fn draws(mut state: u64) -> impl FnMut() -> f64 {
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// Of the cost: a thousandth of one tensor's part, where a thousand partial choices are kept after each.
    const CUT_SHORT: f64 = 1e-4;

    #[test]
    fn a_subset_sum_too_large_to_search_has_an_honest_gap() {
        // A byte costs the same everywhere, so the least cost fills the budget; sizes are even and the budget is odd.
        const TOP: u64 = 1 << 40;
        let mut draw = draws(7);
        let mut candidate = || {
            let bytes = 2 * (draw() * TOP as f64) as u64;
            Candidate { bytes, cost: (2 * TOP - bytes) as f64 }
        };
        let tensors: Vec<Vec<Candidate>> = (0..60).map(|_| (0..4).map(|_| candidate()).collect()).collect();
        let budget = tensors.iter().map(|it| it[0].bytes).sum::<u64>() + 1;
        let least: f64 = tensors.iter().map(|it| it[0].cost).sum();
        let found = allocate_within(1 << 16, &tensors, budget).expect("it has a solution");
        println!("least {least}, found {} with gap {}", found.cost, found.gap);
        assert!(found.gap > 0.0, "a proof is not within reach");
        assert!(found.cost - found.gap <= least && least <= found.cost);
        assert!(found.gap < CUT_SHORT * found.cost);
    }

    /// The sizes of a model's matrices in each of some schemes, with costs that fall fourfold a bit and a sensitivity of the matrix.
    fn model(matrices: &[(u64, u64)], schemes: &[(u64, u64)], seed: u64) -> Vec<Vec<Candidate>> {
        let mut draw = draws(seed);
        let mut of_matrix = |&(rows, columns): &(u64, u64)| {
            let sensitivity = 0.05 * (3.0 * (draw() + draw() + draw() - 1.5)).exp();
            let mut in_scheme = |&(bits, group): &(u64, u64)| Candidate {
                bytes: rows * columns * bits / 8 + rows * columns / group * 2,
                cost: sensitivity * 0.25f64.powi(bits as i32) * (1.0 + group as f64 / 64.0) * (0.5 + draw()),
            };
            schemes.iter().map(&mut in_scheme).collect()
        };
        matrices.iter().map(&mut of_matrix).collect()
    }

    /// Least costs by dynamic programming over all numbers of bytes that the sizes' greatest common divisor divides.
    fn least_cost(tensors: &[Vec<Candidate>], budget: u64) -> f64 {
        fn divisor(a: u64, b: u64) -> u64 {
            if b == 0 { a } else { divisor(b, a % b) }
        }
        let unit = tensors.iter().flatten().fold(0, |unit, it| divisor(unit, it.bytes));
        let mut least = vec![0.0; (budget / unit) as usize + 1];
        for candidates in tensors {
            let mut next = vec![f64::INFINITY; least.len()];
            for candidate in candidates {
                let units = ((candidate.bytes / unit) as usize).min(least.len());
                for (next, least) in next[units..].iter_mut().zip(&least) {
                    *next = next.min(least + candidate.cost);
                }
            }
            least = next;
        }
        least[least.len() - 1]
    }

    /// Of two sums of hundreds of costs, in different orders and units.
    const ROUNDING_OF_A_MODEL: f64 = 1e-12;

    #[test]
    fn models_of_135_million_and_7_billion_weights_are_solved_with_proof() {
        let small = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
        let small = [vec![(49152, 576)], small.repeat(30)].concat();
        let large = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (11008, 4096), (11008, 4096), (4096, 11008)];
        let large = [vec![(32000, 4096); 2], large.repeat(42)].concat();
        assert_eq!((small.len(), large.len()), (211, 296));
        let schemes = [(2, 16), (2, 64), (3, 32), (4, 64), (4, 32), (4, 16), (5, 64), (6, 64), (8, 64), (8, 16)];
        for (matrices, schemes) in [(&small, &schemes[1..9]), (&large, &schemes[..])] {
            for seed in 1..=3 {
                let tensors = model(matrices, schemes, seed);
                let weights: u64 = matrices.iter().map(|(rows, columns)| rows * columns).sum();
                for bits in [2.8, 4.5, 6.3] {
                    let budget = (weights as f64 * bits / 8.0) as u64;
                    let start = std::time::Instant::now();
                    let found = allocate(&tensors, budget).expect("the smallest scheme takes 2.25 bits");
                    println!("{weights} weights, {bits} bits: {:?}", start.elapsed());
                    assert_eq!(found.gap, 0.0);
                    assert!(found.bytes <= budget);
                    // The second way takes seconds for billions of bytes.
                    if weights < 1_000_000_000 {
                        let least = least_cost(&tensors, budget);
                        assert!((found.cost - least).abs() <= ROUNDING_OF_A_MODEL * least, "{} and {least}", found.cost);
                    }
                }
            }
        }
    }
}
