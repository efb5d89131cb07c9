//! What driver and device say about ports (virtio 1.2, section 5.3.6.2): port, event and value, little-endian, and
//! behind a name's message the name.

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Event {
    /// The driver is there, or failed (0).
    DeviceReady = 0,
    /// The device has this port.
    PortAdd = 1,
    /// The driver has set the port up, or failed (0).
    PortReady = 3,
    /// The port is a console.
    ConsolePort = 4,
    /// Somebody is at this end of it, or no longer (0).
    PortOpen = 6,
    /// The name follows.
    PortName = 7,
}

impl Event {
    /// What a driver may say.
    fn of_driver(number: u16) -> Option<Self> {
        [Self::DeviceReady, Self::PortReady, Self::PortOpen].into_iter().find(|event| *event as u16 == number)
    }
}

/// One message of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// Length of one without a name.
    pub const LEN: usize = 8;

    /// Says this.
    pub fn new(port: u32, event: Event, value: u16) -> Self {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend((event as u16).to_le_bytes());
        bytes.extend(value.to_le_bytes());
        Self(bytes)
    }

    /// Says how the port is called.
    pub fn named(port: u32, name: &str) -> Self {
        let Self(mut bytes) = Self::new(port, Event::PortName, 1);
        bytes.extend(name.as_bytes());
        Self(bytes)
    }

    /// As it goes to the driver.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What a driver says: port, event, value. None when it is too short or nothing a driver may say.
    pub fn parse(bytes: &[u8]) -> Option<(u32, Event, u16)> {
        let (port, rest) = bytes.split_first_chunk()?;
        let (event, rest) = rest.split_first_chunk()?;
        let (value, _) = rest.split_first_chunk()?;
        let event = Event::of_driver(u16::from_le_bytes(*event))?;
        Some((u32::from_le_bytes(*port), event, u16::from_le_bytes(*value)))
    }
}
