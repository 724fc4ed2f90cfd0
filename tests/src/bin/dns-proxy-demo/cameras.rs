//! A packet capture at every end of every veth.

use anyhow::{Context as _, Result};
use dns_proxy_tests::{
    Capture, Container, Netns, World,
    container::{Addresses, INTERFACE},
    world::UPLINK,
};

use crate::sighting::{Part, Wire};

/// The other end of the host's uplink.
const INTERNET: &str = "host0";

/// All of them, in the order of a packet's way.
#[derive(Debug)]
pub(crate) struct Cameras(Vec<Camera>);

#[derive(Debug)]
struct Camera {
    place: String,
    part: Part,
    capture: Capture,
    /// How many packets have been looked at already.
    seen: usize,
}

impl Cameras {
    /// Puts them up; what passes from now on is seen.
    pub(crate) fn new(world: &World, inside: &Container, outside: &Container) -> Result<Self> {
        let mut cameras = Vec::new();
        for (part, name, container) in
            [(Part::Inside, "inside", inside), (Part::Outside, "outside", outside)]
        {
            let link = &container.addresses().host_link;
            let own = format!("{name}: {INTERFACE}");
            cameras.push(Camera::new(own, part, container.netns(), INTERFACE)?);
            let its = format!("{name}: host's end, {link}");
            cameras.push(Camera::new(its, part, world.host(), link)?);
        }
        for (name, netns, link) in
            [("host", world.host(), UPLINK), ("internet", world.internet(), INTERNET)]
        {
            cameras.push(Camera::new(format!("{name}: {link}"), Part::Uplink, netns, link)?);
        }
        Ok(Self(cameras))
    }

    /// What each has seen since the last time, told apart by whether it was `outside`'s.
    pub(crate) fn develop(&mut self, outside: &Addresses) -> Result<Vec<Wire>> {
        let outside = [outside.v4.into(), outside.v6.into()];
        self.0
            .iter_mut()
            .map(|camera| {
                let all = camera.capture.packets()?;
                let new = all.get(camera.seen..).unwrap_or_default();
                let wire = Wire::of(&camera.place, camera.part, new, outside);
                camera.seen = all.len();
                Ok(wire)
            })
            .collect()
    }
}

impl Camera {
    fn new(place: String, part: Part, netns: &Netns, interface: &str) -> Result<Self> {
        let capture =
            Capture::on(netns, interface).with_context(|| format!("camera at {place}"))?;
        Ok(Self { place, part, capture, seen: 0 })
    }
}
