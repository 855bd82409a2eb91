/** Certificates that are renewed before they end, on real hosts: who gives them, who gets them, and that nobody is cut by it. */
import { describe, expect, it, onTestFinished } from 'vitest'
import { Renewal } from '../../../agent/membership/renewal.ts'
import { Frames } from '../../../protocols/frame.ts'
import { askRenewal, handOver, RENEWAL_PROTOCOL } from '../../../protocols/membership/renewal.ts'
import { hexOf } from '../../../protocols/membership/statement.ts'
import { DAY } from '../identity/homes.ts'
import { quiet, until } from '../mesh/nodes.ts'
import { type MemberNode, meet, startNetwork } from './nodes.ts'

const soon = () => AbortSignal.timeout(10_000)

type Started = { renewal: Renewal; asked: string[] }

async function startRenewal(node: MemberNode, issuers: readonly MemberNode[] = []): Promise<Started> {
  const { net: membership, scope, gate, home } = node
  const asked: string[] = []
  const renewal = await Renewal.start({
    membership,
    scope,
    renew: (subject) => {
      asked.push(hexOf(subject))
      const shown = gate.membersOf(membership.network).find(({ member }) => hexOf(member.key) === hexOf(subject))
      const chain = home.issuer.renew(membership, subject, shown?.member.chain)
      return 'fault' in chain ? chain.fault : chain
    },
    issuers: () => issuers.map(({ peerId }) => peerId),
    refresh: (peerId, signal) => gate.refresh(peerId, signal),
    log: quiet,
    now: home.clock.now,
  })
  onTestFinished(() => renewal[Symbol.asyncDispose]())
  return { renewal, asked }
}

function laterBy(ms: number, ...nodes: MemberNode[]): void {
  for (const { home } of nodes) home.clock.at += ms
}

const endOf = ({ net }: MemberNode) => net.chain.statement.notAfter

async function speak<T>(from: MemberNode, to: MemberNode, say: (frames: Frames) => Promise<T>): Promise<T> {
  const frames = new Frames(await from.scope.openStream(to.peerId, RENEWAL_PROTOCOL, soon()))
  try {
    return await say(frames)
  } finally {
    await frames.close(soon())
  }
}

async function ask(from: MemberNode, to: MemberNode) {
  return speak(from, to, (frames) => askRenewal(frames, soon()))
}

describe('a certificate', () => {
  it('is left alone in the first half of its time, and renewed in the second, while the connection stays', async () => {
    const [founder, b, c] = await startNetwork('b', 'c')
    if (b === undefined || c === undefined) throw new Error('three')
    const { asked } = await startRenewal(founder)
    await Promise.all([meet(b, founder), meet(c, b)])
    const before = endOf(b)
    const early = await startRenewal(b, [founder])
    await early.renewal[Symbol.asyncDispose]()
    expect([asked, endOf(b)]).toEqual([[], before])
    laterBy(50 * DAY, founder, b, c)
    await startRenewal(b, [founder])
    await until('it is renewed', () => endOf(b) > before)
    expect(asked).toEqual([hexOf(b.key.publicKey)])
    for (const peer of [founder, c])
      await until('peers know', () => peer.gate.memberOf(b.net.network, b.peerId)?.notAfter === endOf(b))
    expect(b.host.links()).toHaveLength(2)
    expect([founder, b, c].flatMap(({ cuts }) => cuts)).toEqual([])
  })

  it('of a node that may issue is renewed by itself', async () => {
    const [founder] = await startNetwork()
    const before = endOf(founder)
    laterBy(50 * DAY, founder)
    await startRenewal(founder)
    await until('it is renewed', () => endOf(founder) > before)
  })

  it('is renewed when somebody who can comes at last', async () => {
    const [founder, b, c] = await startNetwork('b', 'c')
    if (b === undefined || c === undefined) throw new Error('three')
    const before = endOf(b)
    laterBy(50 * DAY, founder, b, c)
    await startRenewal(c)
    await meet(b, c)
    // Nobody is known to issue, and the one who is asked does not.
    await startRenewal(b)
    await expect(ask(b, c)).rejects.toThrow('not-issuing')
    expect(endOf(b)).toBe(before)
    await startRenewal(founder)
    await meet(founder, b)
    await until('it is renewed', () => endOf(b) > before)
  })
})

describe('a member that asks', () => {
  it('gets its own, a few times, and nothing when its key was revoked', async () => {
    const [founder, b, c] = await startNetwork('b', 'c')
    if (b === undefined || c === undefined) throw new Error('three')
    const { asked } = await startRenewal(founder)
    await Promise.all([meet(b, founder), meet(c, founder)])
    for (let nth = 0; nth < 4; nth++)
      expect(hexOf((await ask(b, founder)).statement.subject)).toBe(hexOf(b.key.publicKey))
    await expect(ask(b, founder)).rejects.toThrow('too-often')
    expect(new Set(asked)).toEqual(new Set([hexOf(b.key.publicKey)]))
    expect(asked).toHaveLength(4)
    const revocation = founder.home.issuer.revoke(founder.net, { key: c.key.publicKey, scope: 'member' })
    expect(revocation).toBeDefined()
    // As long as the gate has not looked.
    await expect(ask(c, founder)).rejects.toThrow()
  })
})

describe('a certificate that was issued unasked', () => {
  it('is taken, and shown to whoever is connected; an older one, or one of another key, is not', async () => {
    const [founder, b, c] = await startNetwork('b', 'c')
    if (b === undefined || c === undefined) throw new Error('three')
    const { renewal } = await startRenewal(founder)
    await Promise.all([startRenewal(b), startRenewal(c)])
    await Promise.all([meet(founder, b), meet(b, c), meet(founder, c)])
    const old = b.net.chain
    laterBy(1_000, founder, b, c)
    const labelled = founder.home.issuer.relabel(founder.net, { key: b.key.publicKey, name: 'b' }, { zone: 'a' })
    expect(await renewal.push(b.peerId, labelled, soon())).toBe(true)
    expect(b.net.self.labels).toEqual({ zone: 'a' })
    for (const peer of [founder, c])
      await until('peers know', () => peer.gate.memberOf(b.net.network, b.peerId)?.labels.zone === 'a')
    expect(await renewal.push(b.peerId, labelled, soon())).toBe(false)
    const hand = (from: MemberNode, chain: typeof old) => speak(from, b, (frames) => handOver(frames, chain, soon()))
    await expect(hand(c, old)).rejects.toThrow('older')
    await expect(hand(c, c.net.chain)).rejects.toThrow('not-yours')
    expect(b.net.self.labels).toEqual({ zone: 'a' })
  })
})
