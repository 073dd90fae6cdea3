//! Owns how warm a lead is: points for what a person has told and agreed to. Rule kept: whole numbers, and every
//! point has a reason that can be shown.

use serde::{Deserialize, Serialize};

use crate::{intent::Goal, memory::Conversation};

/// From this many points on a lead is hot.
const HOT: u32 = 60;
/// From this many points on a lead is warm.
const WARM: u32 = 30;
const POINTS_MAX: u32 = 100;

/// How close a person is to a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    Cold,
    Warm,
    Hot,
}

impl Temperature {
    /// The word for it, as in a customer file's tag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Hot => "hot",
        }
    }
}

/// Points of a lead, with what they are for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    pub points: u32,
    pub temperature: Temperature,
    pub reasons: Vec<String>,
}

/// Scores a conversation.
pub fn score(known: &Conversation) -> Score {
    let criteria = u32::try_from(known.slots.criteria()).unwrap_or(u32::MAX);
    let for_what = [
        (known.goal == Goal::SellHome, 35, "wants to sell"),
        (criteria > 0, criteria.saturating_mul(8).min(24), "named criteria"),
        (known.questions > 0, known.questions.saturating_mul(4).min(12), "asked about a home"),
        (known.selected, 20, "likes a home"),
        (known.goal == Goal::VisitHome, 15, "wants to visit"),
        (known.slots.visit_date.is_some(), 10, "named a day"),
        (known.visit_confirmed, 15, "confirmed a visit"),
        (known.wants_human, 20, "asked for a person"),
    ];
    let earned = for_what.into_iter().filter(|(applies, ..)| *applies);
    let (points, mut reasons) =
        earned.fold((0_u32, Vec::new()), |(sum, mut reasons), (_, points, reason)| {
            reasons.push(format!("+{points} {reason}"));
            (sum + points, reasons)
        });
    let lost = known.passed.saturating_mul(2).min(8) + if known.declined { 10 } else { 0 };
    if lost > 0 {
        reasons.push(format!("-{lost} hesitates"));
    }
    let points = points.saturating_sub(lost).min(POINTS_MAX);
    let temperature = match points {
        HOT.. => Temperature::Hot,
        WARM.. => Temperature::Warm,
        _ => Temperature::Cold,
    };
    Score { points, temperature, reasons }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;

    #[test]
    fn a_lead_warms_up_with_what_it_tells() {
        let cold = Conversation { goal: Goal::FindHome, ..Conversation::default() };
        assert_eq!(score(&cold).temperature, Temperature::Cold);

        let slots = Slots { area: Some("Napa".to_owned()), beds: Some(2), ..Slots::default() };
        let warm = Conversation { slots, selected: true, ..cold };
        assert_eq!((score(&warm).points, score(&warm).temperature), (36, Temperature::Warm));

        let mut hot = Conversation { goal: Goal::VisitHome, visit_confirmed: true, ..warm };
        hot.slots.visit_date = Some("today".to_owned());
        assert_eq!(score(&hot).temperature, Temperature::Hot);
        assert_eq!(score(&hot).reasons.len(), 5);
    }

    #[test]
    fn who_wants_to_sell_is_warm_at_once_and_hesitation_cools() {
        let seller = Conversation { goal: Goal::SellHome, ..Conversation::default() };
        assert_eq!(score(&seller).temperature, Temperature::Warm);
        let hesitant = Conversation { declined: true, passed: 9, ..seller };
        assert_eq!(score(&hesitant).points, 17);
    }
}
