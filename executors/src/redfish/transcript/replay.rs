//! A transcript in place of a BMC.
//!
//! How often a question is asked is a matter of pace, what is told to a BMC and in which order is not. So the orders of a
//! transcript cut it in pieces: within one, each question has its answers in the order in which they were given, and the last one
//! from then on; a question that is not asked in a piece has the answer that it had last. An order has to be the next one of the
//! transcript, word for word; what differs is named.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::{StatusCode, Url};

use super::{
    super::client::{Answer, ClientError},
    Asked, Line, NotRecorded, Told, Transcript,
};

/// What answers in a BMC's place.
#[derive(Debug)]
pub(in crate::redfish) struct Replay(Mutex<State>);

#[derive(Debug)]
struct State {
    /// What is asked before each of the orders, and after the last.
    pieces: Vec<BTreeMap<String, VecDeque<Told>>>,
    orders: Vec<(Asked, Told)>,
    /// How many orders were given.
    at: usize,
    last: BTreeMap<String, Told>,
}

impl Replay {
    pub(in crate::redfish) fn new(transcript: &Transcript) -> Self {
        let mut pieces = vec![BTreeMap::<String, VecDeque<Told>>::new()];
        let mut orders = Vec::new();
        for line in &transcript.lines {
            let Line::Exchange(exchange) = line else { continue };
            let (asked, told) = (exchange.request.clone(), exchange.answer.clone());
            match pieces.last_mut() {
                Some(piece) if asked.is_harmless() => piece.entry(asked.key()).or_default().push_back(told),
                _ => {
                    orders.push((asked, told));
                    pieces.push(BTreeMap::new());
                }
            }
        }
        Self(Mutex::new(State {
            pieces,
            orders,
            at: 0,
            last: BTreeMap::new(),
        }))
    }

    /// How many orders there are, and how many of them were given.
    pub(in crate::redfish) fn orders(&self) -> (usize, usize) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.orders.len(), state.at)
    }

    pub(in crate::redfish) fn answer(
        &self,
        operation: &'static str,
        url: &Url,
        asked: &Asked,
    ) -> Result<Answer, ClientError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = if asked.is_harmless() {
            state.ask(asked)
        } else {
            state.order(asked)
        };
        let told = told.map_err(|source| ClientError::NotRecorded { operation, source })?;
        told.answer(operation, url)
    }
}

impl State {
    fn ask(&mut self, asked: &Asked) -> Result<Told, NotRecorded> {
        let key = asked.key();
        let here = self.pieces[self.at].get_mut(&key);
        let told = here.and_then(|answers| match answers.len() {
            0 | 1 => answers.front().cloned(),
            _ => answers.pop_front(),
        });
        if let Some(told) = told {
            self.last.insert(key, told.clone());
            return Ok(told);
        }
        // It may have been asked in a piece that this replay has gone through faster.
        let earlier = self.pieces[..self.at].iter().rev();
        let before = earlier.filter_map(|piece| piece.get(&key)?.back()).next().cloned();
        if let Some(told) = before.or_else(|| self.last.get(&key).cloned()) {
            return Ok(told);
        }
        // Sessions may be opened at any time.
        if asked.method != "GET" {
            let any = self.pieces.iter().filter_map(|piece| piece.get(&key)?.front()).next();
            return Ok(any.cloned().unwrap_or_else(|| Told {
                status: 204,
                ..Told::default()
            }));
        }
        Err(NotRecorded {
            asked: asked.to_string(),
            instead: String::new(),
        })
    }

    fn order(&mut self, asked: &Asked) -> Result<Told, NotRecorded> {
        match self.orders.get(self.at) {
            Some((then, told)) if then == asked => {
                self.at += 1;
                Ok(told.clone())
            }
            Some((then, _)) => Err(NotRecorded {
                asked: asked.to_string(),
                instead: format!("; what was said then is {then}"),
            }),
            None => Err(NotRecorded {
                asked: asked.to_string(),
                instead: "; nothing more was said then".to_owned(),
            }),
        }
    }
}

impl Told {
    fn answer(&self, operation: &'static str, url: &Url) -> Result<Answer, ClientError> {
        let url = url.clone();
        if let Some(words) = self.failed.clone() {
            return Err(ClientError::NoAnswerThen { operation, url, words });
        }
        let body = match (&self.body, self.other_bytes) {
            (Some(body), _) => body.to_string().into_bytes(),
            (None, Some(bytes)) => format!("({bytes} bytes that were no JSON)").into_bytes(),
            (None, None) => Vec::new(),
        };
        // Whoever asked to be left alone is not there.
        let wait = self.retry_after_s.map(|_asked| 0);
        Ok(Answer {
            status: StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            location: self.location.clone(),
            retry_after: wait.map(Duration::from_secs),
            token: self.session.then(|| "replayed-session".to_owned()),
            body,
            url,
        })
    }
}
