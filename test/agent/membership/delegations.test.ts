/** Delegations find the members that they are for, over records that anybody may have passed on. */
import { describe, expect, it, onTestFinished } from 'vitest'
import { Records } from '../../../agent/catalog/records.ts'
import type { Membership } from '../../../agent/identity/membership.ts'
import { Delegations } from '../../../agent/membership/delegations.ts'
import { issueRevocation } from '../../../protocols/membership/revocation.ts'
import type { StatementSigner } from '../../../protocols/membership/statement.ts'
import { DELEGATION_KIND } from '../../../protocols/records/delegation.ts'
import { TestNetwork } from '../../protocols/membership/people.ts'
import { keptLog } from '../catalog/catalog.ts'
import { DAY, type Home, letIn, makeFounder, makeHome, NOW, QUICK } from '../identity/homes.ts'

/** A node's records of the network, with delegations running on them. */
function start({ db, key, clock }: Pick<Home, 'db' | 'key' | 'clock'>, membership: Membership) {
  const log = keptLog()
  const records = new Records(db, { network: membership.network, signer: key, now: clock.now, log })
  const delegations = Delegations.start({ membership, records, log })
  let isStopped = false
  const stop = () => {
    if (isStopped) return
    isStopped = true
    delegations[Symbol.dispose]()
    records[Symbol.dispose]()
  }
  onTestFinished(stop)
  return { records, stop, log, said: () => records.list(DELEGATION_KIND) }
}

function makePair() {
  const founder = makeFounder()
  const guest = makeHome({ clock: founder.clock })
  return { founder, guest, net: letIn(founder, guest, { name: 'guest' }) }
}

const wish = { may: ['issue'] as const, notAfter: NOW + 200 * DAY }

describe('a delegation', () => {
  it('is said by the node with the root key, and taken in by the member, who may sign then', () => {
    const { founder, guest, net } = makePair()
    const [there, here] = [start(founder, founder.net), start(guest, net)]
    founder.issuer.delegate(founder.net, guest.key.publicKey, wish)
    const [said] = there.said()
    expect(there.said()).toHaveLength(1)
    expect(said).toMatchObject({ expires: NOW + 90 * DAY })
    expect(net.can('issue')).toBeUndefined()
    expect(here.records.accept(said?.bytes as Uint8Array)).toBe('new')
    expect(net.can('issue')?.delegation).toBeDefined()
    // Nobody else says it, and a delegate takes in only its own.
    expect(here.records.own(DELEGATION_KIND)).toEqual([])
    const other = makeHome({ clock: founder.clock })
    const otherNet = letIn(founder, other, { name: 'other' })
    start(other, otherNet).records.accept(said?.bytes as Uint8Array)
    expect(otherNet.delegations()).toEqual([])
  })

  it('that was given or came while nobody looked is said and taken in at the next start', () => {
    const { founder, guest, net } = makePair()
    founder.issuer.delegate(founder.net, guest.key.publicKey, wish)
    const there = start(founder, founder.net)
    const first = start(guest, net)
    first.stop()
    const records = new Records(guest.db, {
      network: net.network,
      signer: guest.key,
      now: guest.clock.now,
      log: keptLog(),
    })
    records.accept(there.said()[0]?.bytes as Uint8Array)
    records[Symbol.dispose]()
    expect(net.can('issue')).toBeUndefined()
    start(guest, net)
    expect(net.can('issue')).toBeDefined()
  })

  it('is said again before it runs out, also without the root key, and not once its key was revoked', async () => {
    const { founder, guest } = makePair()
    const fields = { network: founder.net.network, key: guest.key.publicKey, scope: 'issuer', issued: NOW } as const
    const revocation = issueRevocation(fields, founder.net.can('issue')?.signer as StatementSigner)
    founder.issuer.delegate(founder.net, guest.key.publicKey, wish)
    start(founder, founder.net).stop()
    await founder.networks.exportRoot('lab', 'burst swarm slender', QUICK)
    founder.networks.removeRoot('lab')
    founder.clock.at += 50 * DAY
    const second = start(founder, founder.net)
    expect(second.said()).toMatchObject([{ expires: NOW + 140 * DAY }])
    second.stop()
    founder.net.takeRevocation(revocation.bytes)
    founder.clock.at += 60 * DAY
    expect(start(founder, founder.net).said()).toMatchObject([{ expires: NOW + 140 * DAY }])
  })

  it('by another root is nothing to anybody, whoever says it', () => {
    const { founder, guest, net } = makePair()
    const here = start(guest, net)
    const forged = new TestNetwork().delegate(guest.key.publicKey, { network: net.network })
    const liar = new Records(founder.db, {
      network: net.network,
      signer: founder.key,
      now: founder.clock.now,
      log: keptLog(),
    })
    onTestFinished(() => liar[Symbol.dispose]())
    const bodies = [{ v: 1, delegation: forged.bytes }, { v: 1 }, 7]
    for (const [nth, body] of bodies.entries()) {
      const record = liar.put({ kind: DELEGATION_KIND, name: `n${nth}`, body, leaseMs: DAY })
      expect(here.records.accept(record.bytes)).toBe('new')
    }
    expect(net.delegations()).toEqual([])
    expect(here.log.entries).toEqual([])
  })
})
