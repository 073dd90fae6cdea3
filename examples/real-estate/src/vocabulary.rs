//! Owns the phrases that the decoder listens for, as alternatives between bars. It decides nothing; what a phrase means
//! stands where it is used. Rule kept: lower case, whole words, as [`crate::text`] cuts them.

/// Looks for something; with one of [`HOMES`].
pub(crate) const FIND: &str = "find | looking for | search | searching | locate | look for | need | want | rent | hunting | \
     get | looking at | i'd like | i would like | move | moving | hunt | interested in | book | help";

/// What is looked for.
pub(crate) const HOMES: &str = "apartment | apartments | appartment | home | house | place | condo | unit | property | \
     somewhere | flat | studio | accommodation | housing | room | residence | accomodation | pad";

/// Wants to see something else.
pub(crate) const ALTERNATIVES: &str = "other | others | another | else | alternatives | alternative | different | more options | \
     more results | more apartments | any more | additional | next one | instead | some more | \
     more choices | find me some | more listings | more properties | a few more";

/// Likes what was offered.
pub(crate) const SELECTS: &str = "sounds good | sounds great | sounds like | i like | interested in that | interested in it | \
     that one | this one | looks good | looks great | good option | works for me | perfect | \
     good match | i love | i'm interested | i am interested | exactly what | good choice | \
     sounds perfect | is great | is good | sound good | sound great | good for me | great option | \
     sounds fine | sounds nice | sounds amazing | will take | i'll take | sounds excellent | \
     nice one | good one | suits me | great | good | like that";

/// Wants to see the home.
pub(crate) const VISITS: &str = "visit | appointment | viewing | tour | schedule | inspection | see it | see the apartment | \
     see the place | see the property | look at it | check it out | see this | see that | view it | \
     view the | view this | see them | walk through | drop by | stop by | go see | visiting | \
     showing | look at the apartment | book it | come by | go there | have a look | take a look | \
     check out | visitation | drop plan | look at the property | look at this | reserve";

/// Puts it off.
pub(crate) const NOT_NOW: &str = "don't want to | do not want to | not right now | not now | not yet | not at the moment | \
     not ready | not at this time | don't need | do not need | no need | won't | not today | \
     at a later time | some other time | later on | not interested | don't think so | \
     not just yet | hold off | i'll do it later | wait on | not for now | not necessary | \
     maybe later | i will do it later | another time | do it later";

/// Wants nothing more.
pub(crate) const CLOSES: &str = "that's all | that is all | that will be all | that'll be all | that's it | that is it | bye | \
     goodbye | good bye | that's everything | that is everything | have a great | have a good | \
     have a nice | all i need | all i needed | no longer need | nothing else | i'm good | \
     i'm all set | all set | take care | that would be all | i am good | that'll do | \
     that should do | i'm done | see you | don't need anything | all the information | \
     all for now | it for now | all i want | i am done | all good";

/// Agrees.
pub(crate) const AFFIRMS: &str = "yes | yeah | yep | yup | sure | correct | right | exactly | perfect | great | okay | ok | \
     fine | please do | sounds good | sounds great | confirmed | confirm | absolutely | \
     definitely | of course | good | that works | excellent | awesome | fantastic | wonderful | \
     thanks | thank you | cool | works | that'd be | i do | i would | alright | go ahead | \
     certainly | indeed | super | nice | lovely";

/// Wants homes that have something, as opposed to [`QUESTIONS`].
pub(crate) const WISHES: &str = "i want | i need | i'd like | i would like | looking for | find | should | must | prefer | \
     search for | show me | have a | my | somewhere | i also need | something | wish | needs to | \
     i also want | it to be | ones | which | as long as | want to | other";

/// Asks whether one home has something.
pub(crate) const QUESTIONS: &str = "is it | are pets | do they | does it | does the | is the | do you know | i need to know | \
     can i have | can you confirm | are they | can you tell | tell me if | let me know | is this | \
     is that | i'd like to know | i would like to know | i want to know | would like to know | \
     does this | does that | will the | are animals | are the | pets allowed ? | am i | find out | \
     pets permitted | know if | like to know | come furnished | wondering if | check if | number | \
     phone | come with";

/// The assistant asks to confirm.
pub(crate) const CONFIRMATIONS: &str = "confirm | confirming | is that correct | correct ? | is this correct | right ? | \
     is that right | ensure | sound good ? | is that okay | is that ok";

/// The assistant speaks about a visit.
pub(crate) const VISITING: &str = "schedule | visit | appointment | viewing | tour | view | see the | check it out | look at | \
     see it | book | walk through | check out | inspection";

/// The assistant offers to do something.
pub(crate) const OFFERS: &str = "would you like | do you want | should i | shall i | do you like | are you interested | \
     do so for | would you want | if you would like | schedule a visit ? | you would like | \
     you'd like | can i schedule | want me to | do you wish | would you | do i | how about | \
     want to | are you planning | you like to | can i | may i | do you need | interested in";

/// Asks what a home is worth.
pub(crate) const WORTH: &str = "worth | valuation | appraisal | value of my | my home value | how much could i get | \
     how much would my";

/// Wants to sell.
pub(crate) const SELLS: &str = "sell | selling | list my | put my house | put my home | my asking price";

/// Asks for the rent.
pub(crate) const PRICES: &str = "how much | what's the rent | what is the rent | the price | cost | rent ? | price ? | \
     monthly rent | what do they charge";

/// Asks or requests something.
pub(crate) const ASKS: &str = "? | can i | could i | may i | know | tell me | give me | what's | what is | is it | is there | \
     please";

/// Asks for a phone number.
pub(crate) const PHONES: &str = "phone | telephone | number ? | their number | contact | call them | the number | \
     property's number";

/// Wants to speak with a person.
pub(crate) const HUMANS: &str = "human | real person | speak to someone | talk to someone | speak with someone | \
     talk to a person | an agent | a realtor | call me | a colleague | representative";

/// Has a word of [`ALTERNATIVES`] and does not want to see something else.
pub(crate) const NO_ALTERNATIVES: &str =
    "anything else | nothing else | one more | else i need | another question | another detail";
