/** Who comes in, and what is told of it, with real connections on loopback. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, it, onTestFinished, vi } from 'vitest'
import type { AuditEntry } from '../../../agent/api/membership-contract.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import type { Membership } from '../../../agent/identity/membership.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import type { Host } from '../../../agent/mesh/host.ts'
import { Entrance } from '../../../agent/node/entrance.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { quiet, startHost } from '../mesh/nodes.ts'

const MS_MAX = 10_000
const signal = () => AbortSignal.timeout(MS_MAX)

async function start({ open = false } = {}) {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-entrance-'))
  const db = openDatabase(join(directory, 'state.db'))
  const key = ephemeralNodeKey()
  const entrance = new Entrance({ db, directory, key, open, roll: () => undefined, log: quiet })
  const host = await startHost({ key, gate: entrance.gate, open })
  onTestFinished(async () => {
    await host[Symbol.asyncDispose]()
    entrance[Symbol.dispose]()
    db.close()
    rmSync(directory, { recursive: true })
  })
  const audited = async (): Promise<AuditEntry[]> => await Array.fromAsync(entrance.audit.read())
  return { entrance, host, peerId: key.peerId, audited }
}

type Node = Awaited<ReturnType<typeof start>>

/** By a token of the first. */
async function admit(issuer: Node, membership: Membership, guest: Node): Promise<void> {
  const { token } = issuer.entrance.invitations.create({ membership, addresses: [], expires: Date.now() + 60_000 })
  const dial = () => dialled(guest.host, issuer)
  await guest.entrance.gate.join(token, issuer.peerId, dial, signal(), 'guest')
}

function dialled(host: Host, { host: other }: Node): Promise<unknown> {
  return host.dial(
    other.addresses().map((address) => multiaddr(address)),
    signal(),
  )
}

describe('the entrance', () => {
  it('lets in by a token who is then a member, and both sides have that in their audit logs', async () => {
    const [founder, guest] = [await start(), await start()]
    const home = founder.entrance.networks.create('home', { memberName: 'founder' })
    await admit(founder, home, guest)
    expect(guest.entrance.networks.list().map(({ name, self }) => [name, self.name])).toEqual([['home', 'guest']])
    await vi.waitFor(async () => {
      expect(await founder.audited()).toMatchObject([
        {
          event: 'member.joined',
          network: 'home',
          peerId: guest.peerId,
          name: 'guest',
          invitation: expect.any(String),
        },
        { event: 'peer.admitted', network: 'home', peerId: guest.peerId, name: 'guest', rule: 'member' },
      ])
      expect(await guest.audited()).toMatchObject([
        { event: 'network.joined', network: 'home', name: 'guest' },
        { event: 'peer.admitted', network: 'home', peerId: founder.peerId, name: 'founder', rule: 'member' },
      ])
    })
    expect(founder.entrance.sharedWith(guest.peerId)).toEqual(['home'])
    expect(guest.entrance.sharedWith(founder.peerId)).toEqual(['home'])
  })

  it('refuses a stranger while the open network is off, lets him in while it is on, and tells of both', async () => {
    const [closed, open, stranger] = [await start(), await start({ open: true }), await start({ open: true })]
    closed.entrance.networks.create('home', { memberName: 'founder' })
    await expect(dialled(stranger.host, closed)).rejects.toThrow()
    await dialled(stranger.host, open)
    await vi.waitFor(async () => {
      expect(await closed.audited()).toMatchObject([{ event: 'peer.refused', peerId: stranger.peerId }])
      expect(await open.audited()).toMatchObject([
        { event: 'peer.admitted', peerId: stranger.peerId, network: 'open', rule: 'open network' },
      ])
    })
    expect(open.entrance.sharedWith(stranger.peerId)).toEqual(['open'])
    expect(closed.entrance.sharedWith(stranger.peerId)).toEqual([])
  })

  it('gives content to members as the policy says, at each request, and to nobody else', async () => {
    const [founder, guest] = [await start({ open: true }), await start({ open: true })]
    const { entrance, audited } = founder
    const home = entrance.networks.create('home', { memberName: 'founder' })
    const work = entrance.networks.create('work', { memberName: 'founder' })
    await admit(founder, home, guest)
    expect(entrance.mayFetch(guest.peerId, home.id)).toBe(true)
    // Of a network that he is not in, of one that this node is not in, of somebody who is not connected.
    expect(entrance.mayFetch(guest.peerId, work.id)).toBe(false)
    expect(entrance.mayFetch(guest.peerId, 'ab'.repeat(32))).toBe(false)
    expect(entrance.mayFetch(ephemeralNodeKey().peerId, home.id)).toBe(false)
    expect(entrance.mayFetch(ephemeralNodeKey().peerId, OPEN_NETWORK_ID)).toBe(true)

    entrance.issuer.setPolicy(home, [{ from: 'name:nobody', to: '*', allow: ['content:fetch'] }])
    expect(entrance.mayFetch(guest.peerId, home.id)).toBe(false)
    const refusals = (await audited()).filter(({ event }) => event === 'access.refused')
    expect(refusals).toMatchObject([
      { network: 'home', peerId: guest.peerId, name: 'guest', why: expect.stringContaining('content:fetch') },
    ])
  })

  it('with the open network off gives nothing to everybody', async () => {
    const { entrance } = await start()
    expect(entrance.isOpen).toBe(false)
    expect(entrance.mayFetch(ephemeralNodeKey().peerId, OPEN_NETWORK_ID)).toBe(false)
  })

  it('cuts who is revoked, and tells why', async () => {
    const [founder, guest] = [await start(), await start()]
    const { entrance, audited } = founder
    const home = entrance.networks.create('home', { memberName: 'founder' })
    await admit(founder, home, guest)
    const [member] = entrance.gate.membersOf(home.network)
    entrance.issuer.revoke(home, { key: member?.member.key ?? new Uint8Array(), scope: 'member' })
    expect(entrance.gate.recheck()).toBe(1)
    expect(entrance.mayFetch(guest.peerId, home.id)).toBe(false)
    await vi.waitFor(async () =>
      expect((await audited()).at(-1)).toMatchObject({
        event: 'peer.cut',
        peerId: guest.peerId,
        why: 'the key of "guest" was revoked',
      }),
    )
  })

  it('notes that the certificate of this node was renewed', async () => {
    const { entrance, audited } = await start()
    const home = entrance.networks.create('home', { memberName: 'founder' })
    home.takeChain(entrance.issuer.relabel(home, home.self, { zone: 'a' }))
    expect(await audited()).toMatchObject([{ event: 'certificate.renewed', network: 'home', name: 'founder' }])
  })
})
