/** Guests of a relay over real hosts on loopback: carried to whose pass they have, and let in for nothing else. */
import { multiaddr } from '@multiformats/multiaddr'
import { expect, it, onTestFinished } from 'vitest'
import { Guests, guestAddress } from '../../../agent/mesh/guests.ts'
import { Relays } from '../../../agent/mesh/relays.ts'
import { encodePass } from '../../../protocols/membership/pass.ts'
import { hexOf } from '../../../protocols/membership/statement.ts'
import type { TestNetwork } from '../../protocols/membership/people.ts'
import { type MemberHost, makeNetwork, startMember } from './member-hosts.ts'
import { join, quiet, until } from './nodes.ts'

const soon = () => AbortSignal.timeout(10_000)

type Station = MemberHost & { relays: Relays; guests: Guests }

async function station(name: string, networks: readonly TestNetwork[], issues: () => boolean): Promise<Station> {
  const member = await startMember(name, networks, false)
  const relays = new Relays({ host: member.host, carries: true, log: quiet })
  for (const network of networks) {
    const scope = member.streams.of(network.id)
    await relays.serve(hexOf(network.id), {
      scope,
      mayUse: (peerId) => scope.connected().includes(peerId),
      isMember: (peerId) => scope.connected().includes(peerId),
      issues,
      relaysOf: () => [],
    })
  }
  const guests = await Guests.start({ host: member.host, gate: member.gate, relays, log: quiet })
  onTestFinished(() => relays[Symbol.asyncDispose]())
  return { ...member, relays, guests }
}

/** Somebody who makes tokens and is connected with a relay, and a newcomer who can dial the relay only. */
async function parts(issues = () => true) {
  const network = makeNetwork()
  const all = [await station('issuer', [network], issues), await station('relay', [network], issues)]
  const [issuer, relay] = all as [Station, Station]
  const newcomer = await station('newcomer', [], () => false)
  await join(issuer.host, relay.host)
  await until('the relay knows the issuer', () => relay.streams.of(network.id).connected().length === 1)
  const pass = encodePass({ network: network.id, expires: Date.now() + 60_000 }, issuer.key).bytes
  const [own = ''] = relay.host.addresses()
  const token = { addresses: [guestAddress(multiaddr(own), relay.peerId)], pass }
  return { network, issuer, relay, newcomer, token }
}

it('a newcomer comes as far as the issuer, where his token decides, and nobody at the relay hears of him', async () => {
  const { network, issuer, relay, newcomer, token } = await parts()
  // He has no token here: the issuer refuses him, in a hello that went through the relay.
  await expect(newcomer.guests.reach(token, issuer.peerId, soon())).rejects.toMatchObject({
    code: 'not-allowed',
    message: expect.stringContaining(issuer.peerId),
  })
  expect(newcomer.gate.admitted(relay.peerId)?.guest).toBeDefined()
  expect(relay.streams.of(network.id).connected()).toEqual([issuer.peerId])
  expect(newcomer.gate.admitted(relay.peerId)).toMatchObject({ open: false, members: [] })
  await until('nothing is carried any more', () => relay.relays.carriedCount === 0)
  // As a member, he is in: by a certificate, which a token would have brought.
  newcomer.party.join(network, network.certify(newcomer.key.publicKey, { name: 'newcomer' }))
  await newcomer.guests.reach(token, issuer.peerId, soon())
  expect(newcomer.gate.memberOf(network.id, issuer.peerId)?.name).toBe('issuer')
  expect(newcomer.host.isDirect(issuer.peerId)).toBe(false)
})

it('a guest is carried to nobody else, and not for who lets nobody in', async () => {
  const { network, issuer, relay, newcomer, token } = await parts()
  const other = await station('other', [network], () => true)
  await join(other.host, relay.host)
  await until('the relay knows both', () => relay.streams.of(network.id).connected().length === 2)
  await expect(newcomer.guests.reach(token, issuer.peerId, soon())).rejects.toMatchObject({ code: 'not-allowed' })
  await expect(newcomer.relays.reachAsGuest(relay.peerId, other.peerId, soon())).rejects.toMatchObject({
    message: expect.stringContaining('refused'),
  })
  const unissuing = await parts(() => false)
  await expect(unissuing.newcomer.guests.reach(unissuing.token, unissuing.issuer.peerId, soon())).rejects.toThrow()
  expect(unissuing.newcomer.gate.admitted(unissuing.relay.peerId)).toBeUndefined()
})

it('eight of one member at a time, however many keys somebody makes: the ninth is let in when one has gone', async () => {
  const { network, issuer, relay, token } = await parts()
  const all: Station[] = []
  const comes = async (newcomer: Station) => {
    await newcomer.guests.reach(token, issuer.peerId, soon()).catch(() => undefined)
    return newcomer.gate.admitted(relay.peerId)?.guest !== undefined
  }
  for (let nth = 0; nth < 8; nth++) {
    const newcomer = await station(`newcomer-${nth}`, [], () => false)
    expect(await comes(newcomer)).toBe(true)
    all.push(newcomer)
  }
  const ninth = await station('ninth', [], () => false)
  expect(await comes(ninth)).toBe(false)
  expect(relay.streams.of(network.id).connected()).toEqual([issuer.peerId])
  await all[0]?.host[Symbol.asyncDispose]()
  await until('one has gone', () => relay.gate.guestsOf(issuer.key.publicKey) < 8)
  expect(await comes(ninth)).toBe(true)
})

it('a member who is no guest is not carried as one', async () => {
  const { issuer, relay } = await parts()
  await expect(issuer.relays.reachAsGuest(relay.peerId, relay.peerId, soon())).rejects.toThrow()
})
