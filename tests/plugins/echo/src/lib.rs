//! The `echo` backend: every output is the input at the same place, copied. It misbehaves where a model's parameter
//! `conduct` asks for it, and counts what of it lives. On a GPU that is the double's, whose memory is the host's, a model holds
//! `device_bytes` of it and each run takes as much for itself, and looks at both.

mod device;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use roundhouse_abi as abi;
use roundhouse_abi::export_backend;
use roundhouse_abi::plugin::{Backend, Failure, Host, Input, Instance, LoadRequest, Model, Output, Outputs, Signature};

use device::{Held, Stream};

/// The backend.
pub struct Echo;

export_backend!(Echo, c"echo", c"echo, for tests", c"", [c"conduct", c"device_bytes"]);

static HOST: OnceLock<Host> = OnceLock::new();

/// Models, instances and outputs that live.
static ALIVE: AtomicU64 = AtomicU64::new(0);

/// Counts itself.
struct Alive;

impl Alive {
    fn new() -> Self {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a model behaves.
#[derive(Clone, Copy, PartialEq)]
enum Conduct {
    Good,
    PanicAtInstance,
    PanicAtRun,
    PanicAfterOutputs,
    FailAtRun,
    GiveTooFew,
    GiveAnotherType,
    GiveTooManyBytes,
}

impl Backend for Echo {
    type Model = EchoModel;

    fn initialize(host: Host) -> Result<(), Failure> {
        host.log(abi::LOG_INFO, &format!("echo starts for {} threads", host.executor_threads()));
        let _ = HOST.set(host);
        Ok(())
    }

    fn load(request: &LoadRequest<'_>) -> Result<EchoModel, Failure> {
        let conduct = match request.parameter("conduct") {
            None => Conduct::Good,
            Some("panic at load") => panic!("asked to panic"),
            Some("fail at load") => return Err(Failure::invalid("asked to fail")),
            Some("panic at instance") => Conduct::PanicAtInstance,
            Some("panic at run") => Conduct::PanicAtRun,
            Some("panic after outputs") => Conduct::PanicAfterOutputs,
            Some("fail at run") => Conduct::FailAtRun,
            Some("give too few") => Conduct::GiveTooFew,
            Some("give another type") => Conduct::GiveAnotherType,
            Some("give too many bytes") => Conduct::GiveTooManyBytes,
            Some(other) => return Err(Failure::invalid(format!("parameter conduct is '{other}'"))),
        };
        let signature = Signature::new(&request.inputs(), &request.outputs(), false)?;
        let held = match (request.device(), request.parameter("device_bytes").map(str::parse)) {
            ((abi::GPU, id), Some(Ok(bytes))) => Some(Held::take(id, bytes)?),
            _ => None,
        };
        Ok(EchoModel { signature, conduct, held: held.map(Arc::new), _alive: Alive::new() })
    }

    fn device_memory(kind: i32, _id: u32) -> Option<abi::RoundhouseDeviceMemory> {
        let alive = ALIVE.load(Ordering::SeqCst);
        // Of a GPU it says as much, so that the server sees that it can use one.
        (kind == abi::CPU || HOST.get().is_some_and(|host| host.device().is_some()))
            .then_some(abi::RoundhouseDeviceMemory { allocated: alive, reserved: alive })
    }
}

/// A model, which is its configuration.
pub struct EchoModel {
    signature: Signature,
    conduct: Conduct,
    held: Option<Arc<Held>>,
    _alive: Alive,
}

impl Model for EchoModel {
    type Instance = EchoInstance;

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self) -> Result<EchoInstance, Failure> {
        assert!(self.conduct != Conduct::PanicAtInstance, "asked to panic");
        let held = self.held.as_ref().map(|held| Ok((Arc::clone(held), held.stream()?)));
        Ok(EchoInstance { conduct: self.conduct, held: held.transpose()?, _alive: Alive::new() })
    }

    fn memory(&self) -> Option<abi::RoundhouseModelMemory> {
        let bytes = self.held.as_ref().map_or(4096, |held| held.bytes() as u64);
        Some(abi::RoundhouseModelMemory { bytes, kind: abi::MEMORY_EXACT, reserved: 0 })
    }
}

/// Runs a model.
pub struct EchoInstance {
    conduct: Conduct,
    held: Option<(Arc<Held>, Stream)>,
    _alive: Alive,
}

impl Instance for EchoInstance {
    type Output = Copied;

    fn infer(
        &mut self,
        inputs: &[Input<'_>],
        wanted: &[usize],
        outputs: &mut Outputs<'_, Copied>,
    ) -> Result<(), Failure> {
        match self.conduct {
            Conduct::PanicAtRun => panic!("asked to panic"),
            Conduct::FailAtRun => return Err(Failure::failed("asked to fail")),
            _ => {}
        }
        if let Some((held, stream)) = &self.held {
            held.run(stream)?;
        }
        for &index in wanted {
            let input = inputs.iter().find(|input| input.index() == index);
            let input = input.ok_or_else(|| Failure::invalid(format!("there is no input {index}")))?;
            let mut copied = Copied {
                data_type: input.data_type(),
                dims: input.dims().to_vec(),
                data: input.data().to_vec(),
                _alive: Alive::new(),
            };
            match self.conduct {
                Conduct::GiveAnotherType => copied.data_type = 99,
                Conduct::GiveTooManyBytes => copied.data.push(0),
                Conduct::GiveTooFew if index + 1 == wanted.len() => continue,
                _ => {}
            }
            outputs.push(copied);
        }
        assert!(self.conduct != Conduct::PanicAfterOutputs, "asked to panic");
        Ok(())
    }
}

/// A tensor of its own.
pub struct Copied {
    data_type: i32,
    dims: Vec<i64>,
    data: Vec<u8>,
    _alive: Alive,
}

impl Output for Copied {
    fn data_type(&self) -> i32 {
        self.data_type
    }

    fn dims(&self) -> &[i64] {
        &self.dims
    }

    fn data(&self) -> &[u8] {
        &self.data
    }
}
