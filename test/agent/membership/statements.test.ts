/** Revocations and policy among members on real hosts: how they spread, whom they cut, and what a member that lies can do. */
import { randomBytes } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { Frames } from '../../../protocols/frame.ts'
import { answerStatements, IDS_PAGE_MAX, STATEMENTS_PROTOCOL } from '../../../protocols/membership/exchange.ts'
import { issuePolicy } from '../../../protocols/membership/policy.ts'
import { issueRevocation } from '../../../protocols/membership/revocation.ts'
import { hexOf } from '../../../protocols/membership/statement.ts'
import { join, until } from '../mesh/nodes.ts'
import { inNetwork, type MemberNode, meet, startNetwork, startNode, startStatements } from './nodes.ts'

const soon = () => AbortSignal.timeout(10_000)

/** Signs a revocation as the network's root, and does nothing with it. */
function revocationOf({ net }: MemberNode, key: Uint8Array): Uint8Array {
  const signer = net.can('revoke')?.signer
  if (signer === undefined) throw new Error('not the founder')
  return issueRevocation({ network: net.network, key, scope: 'member', issued: Date.now() }, signer).bytes
}

function setPolicy({ net }: MemberNode, version: number): void {
  const signer = net.can('policy')?.signer
  if (signer === undefined) throw new Error('not the founder')
  net.takePolicy(issuePolicy({ network: net.network, version, grants: [], issued: Date.now() }, signer).bytes)
}

const revoked = ({ net }: MemberNode) =>
  net.revocations
    .list()
    .map(({ statement }) => hexOf(statement.key))
    .sort()

describe('members that meet', () => {
  it('have the same revocations and policy afterwards, and are told when', async () => {
    const [a, b] = await startNetwork('b')
    if (b === undefined) throw new Error('two')
    const keys = Array.from({ length: 40 }, () => randomBytes(32))
    for (const [nth, key] of keys.entries()) {
      const bytes = revocationOf(a, key)
      if (nth % 3 !== 0) a.net.takeRevocation(bytes)
      if (nth % 3 !== 1) b.net.takeRevocation(bytes)
    }
    setPolicy(a, 7)
    const [ofA, ofB] = [await startStatements(a), await startStatements(b)]
    const known: number[] = []
    ofA.statements.onCompared(() => known.push(revoked(a).length, revoked(b).length))
    ofB.statements.onCompared(() => known.push(revoked(a).length, revoked(b).length))
    await meet(b, a)
    await until('both were told', () => ofA.compared.length === 1 && ofB.compared.length === 1)
    expect(known).toEqual([40, 40, 40, 40])
    expect(revoked(b)).toEqual(keys.map((key) => hexOf(key)).sort())
    expect(b.net.policy?.statement.version).toBe(7)
    // Who asks later is told soon.
    const late: string[] = []
    ofB.statements.onCompared((peerId, direction) => late.push(`${direction} ${peerId}`))
    await until('the late one is told', () => late.length === 1)
    expect(late).toEqual([`outbound ${a.peerId}`])
  })

  it('compare also when one of them is not ready when they meet', async () => {
    const [a, b] = await startNetwork('b')
    if (b === undefined) throw new Error('two')
    b.net.takeRevocation(revocationOf(a, randomBytes(32)))
    await meet(a, b)
    // Later than the other, and so refused at first.
    const ofB = await startStatements(b)
    await until('b tried', () => b.scope.connected().length === 1)
    const ofA = await startStatements(a)
    await until('they compared', () => ofA.compared.length === 1 && ofB.compared.length === 1)
    expect(revoked(a)).toHaveLength(1)
  })
})

describe('who was dialled', () => {
  it('compares when the other does not', async () => {
    const [a, b] = await startNetwork('b')
    if (b === undefined) throw new Error('two')
    a.net.takeRevocation(revocationOf(a, randomBytes(32)))
    const offered: string[] = []
    await b.scope.handle(
      STATEMENTS_PROTOCOL,
      async (stream) => {
        const frames = new Frames(stream)
        await answerStatements(
          frames,
          {
            digests: () => new Uint8Array(4_096),
            ids: () => [],
            statement: () => undefined,
            policy: () => undefined,
            take: async ({ statements, policy }) => {
              offered.push(...statements.map(({ kind }) => kind), ...(policy ? ['policy'] : []))
              return 1
            },
          },
          { requestsMax: 10, signal: soon },
        )
        await frames.close(soon())
      },
      { maxInboundStreams: 4 },
    )
    const ofA = await startStatements(a)
    await meet(b, a)
    await until('they compared', () => ofA.compared.length === 1)
    expect(offered).toEqual(['revocation', 'policy'])
  })
})

describe('who joins by a token over a connection that there is', () => {
  it('is known by the name that it wished, and has what members know, without connecting anew', async () => {
    const first = await startNode(true)
    const founder = inNetwork(first, first.home.networks.create('lab', { memberName: 'founder' }))
    founder.net.takeRevocation(revocationOf(founder, randomBytes(32)))
    const newcomer = await startNode(true)
    const ofFounder = await startStatements(founder)
    await join(newcomer.host, founder.host)
    await until('they are connected', () => founder.gate.admitted(newcomer.peerId)?.open === true)
    const [link] = founder.host.links()
    const { token } = founder.home.invitations.create({
      membership: founder.net,
      addresses: [],
      expires: Date.now() + 60_000,
    })
    const dial = () => Promise.reject(new Error('dialled'))
    await newcomer.gate.join(token, founder.peerId, dial, soon(), 'db7')
    const [net] = newcomer.home.networks.list()
    if (net === undefined) throw new Error('it has joined')
    const member = inNetwork(newcomer, net)
    const ofMember = await startStatements(member)
    await until('they compared', () => ofFounder.compared.length === 1 && ofMember.compared.length === 1)
    expect(founder.gate.memberOf(net.network, newcomer.peerId)?.name).toBe('db7')
    expect(revoked(member)).toEqual(revoked(founder))
    expect(net.policy?.statement.version).toBe(1)
    expect(founder.host.links()).toMatchObject([{ connectedMs: link?.connectedMs, peerId: newcomer.peerId }])
  })
})

describe('what is new', () => {
  it('reaches all members at once over others, and cuts whom it throws out, who is told nothing', async () => {
    const [a, b, c, out] = await startNetwork('b', 'c', 'out')
    if (b === undefined || c === undefined || out === undefined) throw new Error('four')
    const all = await Promise.all([a, b, c, out].map((node) => startStatements(node)))
    await Promise.all([meet(b, a), meet(c, b), meet(out, c)])
    await until('all compared', () => all.map(({ compared }) => compared.length).join() === '1,2,2,1')
    const startMs = performance.now()
    a.net.takeRevocation(revocationOf(a, out.key.publicKey))
    await until('it is cut', () => !c.host.isConnected(out.peerId))
    expect(performance.now() - startMs).toBeLessThan(1_000)
    expect(c.cuts).toMatchObject([{ peerId: out.peerId, why: 'the key of "out" was revoked' }])
    expect([b, c].map((node) => revoked(node))).toEqual([revoked(a), revoked(a)])
    expect(revoked(out)).toEqual([])
    expect(b.host.isConnected(c.peerId)).toBe(true)
    setPolicy(a, 2)
    await until('the policy is there', () => c.net.policy?.statement.version === 2)
  })

  it('passes in hundreds, whoever makes it', async () => {
    const [a, b, c] = await startNetwork('b', 'c')
    if (b === undefined || c === undefined) throw new Error('three')
    const all = await Promise.all([a, b, c].map((node) => startStatements(node)))
    await Promise.all([meet(b, a), meet(c, b)])
    await until('all compared', () => all.map(({ compared }) => compared.length).join() === '1,2,1')
    for (let nth = 0; nth < 300; nth++) [a, c][nth % 2]?.net.takeRevocation(revocationOf(a, randomBytes(32)))
    await until('all have all', () => [a, b, c].every((node) => revoked(node).length === 300))
    expect(revoked(b)).toEqual(revoked(a))
  })
})

describe('a member that lies', () => {
  /** Answers requests for statements with what `answer` says. */
  async function lie(node: MemberNode, answer: (question: string, nth: number) => unknown): Promise<{ asked: number }> {
    const told = { asked: 0 }
    await node.scope.handle(
      STATEMENTS_PROTOCOL,
      async (stream) => {
        const frames = new Frames(stream)
        for (let frame = await frames.read(soon()); frame; frame = await frames.read(soon())) {
          const question = /summary|ids|statements|policy|offer/.exec(Buffer.from(frame).toString('latin1'))?.[0] ?? ''
          await frames.write(encodeCbor(answer(question, told.asked++)), soon())
        }
        await frames.close(soon())
      },
      { maxInboundStreams: 16 },
    )
    return told
  }

  const summary = { digests: randomBytes(4_096), policy: null }
  const ids = (nth: number) => {
    const list = Array.from({ length: IDS_PAGE_MAX }, (_, at) => {
      const id = Buffer.alloc(32)
      id.writeUInt32BE(at + nth * IDS_PAGE_MAX, 0)
      return id
    })
    return { ids: Buffer.concat(list) }
  }

  it.each<[string, (node: MemberNode) => (question: string, nth: number) => unknown]>([
    ['with garbage', () => () => ({ wrong: true })],
    ['with ids out of order', () => (what) => (what === 'summary' ? summary : ids(0))],
    [
      'with other statements than were asked for',
      (a) => {
        const bytes = revocationOf(a, randomBytes(32))
        return (what, nth) =>
          what === 'summary' ? summary : what === 'ids' ? ids(nth) : { statements: [{ kind: 'revocation', bytes }] }
      },
    ],
    [
      'with statements that nobody signed',
      (a) => (what, nth) => {
        const bytes = Uint8Array.from(revocationOf(a, randomBytes(32)))
        bytes[20] = (bytes[20] ?? 0) ^ 1
        return what === 'summary'
          ? summary
          : what === 'ids'
            ? ids(nth)
            : { statements: [{ kind: 'revocation', bytes }] }
      },
    ],
    [
      'with a policy that nobody signed',
      () => (what) => {
        const position = { version: 9_999, id: new Uint8Array(32) }
        if (what === 'summary') return { digests: summary.digests, policy: position }
        return what === 'ids' ? { ids: new Uint8Array(0) } : { policy: randomBytes(200) }
      },
    ],
  ])('%s is left alone, and others are served', async (_what, answers) => {
    const [a, b, liar] = await startNetwork('b', 'liar')
    if (b === undefined || liar === undefined) throw new Error('three')
    const ofB = await startStatements(b)
    const told = await lie(liar, answers(a))
    await meet(b, liar)
    await until('it was asked', () => told.asked > 0)
    const ofA = await startStatements(a)
    await meet(b, a)
    await until('the honest compare', () => ofA.compared.length === 1 && ofB.compared.length === 1)
    expect(ofB.compared).toEqual([a.peerId])
    const asked = told.asked
    b.net.takeRevocation(revocationOf(a, randomBytes(32)))
    await until('news pass', () => revoked(a).length > 0)
    expect(told.asked - asked).toBeLessThanOrEqual(2)
    expect(asked).toBeLessThan(8)
    // It is not answered either, for a while.
    const frames = new Frames(await liar.scope.openStream(b.peerId, STATEMENTS_PROTOCOL, soon()))
    await frames.write(encodeCbor({ ask: 'summary' }), soon())
    await expect(frames.read(soon())).rejects.toMatchObject({ code: 'closed' })
  })

  it('or asks for too much gets an error, and no more', async () => {
    const [, b, liar] = await startNetwork('b', 'liar')
    if (b === undefined || liar === undefined) throw new Error('three')
    await startStatements(b)
    await meet(liar, b)
    const frames = new Frames(await liar.scope.openStream(b.peerId, STATEMENTS_PROTOCOL, soon()))
    await frames.write(encodeCbor({ ask: 'statements', ids: randomBytes(32) }), soon())
    expect(Buffer.from((await frames.read(soon())) ?? []).toString()).toContain('absent')
    await expect(frames.read(soon())).rejects.toMatchObject({ code: 'closed' })
  })
})
