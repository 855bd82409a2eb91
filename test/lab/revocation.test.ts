/**
 * Revocation as it is lived through: a transfer that runs ends within five seconds of the record's arrival at the agent that serves it, as
 * that agent's audit log has it; whatever the clocks say, after a partition, for what a revoked issuer gave, whichever encoding of a
 * certificate is shown, and however often everybody is killed. And a policy that takes a right away counts from the next request on.
 */
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join as path } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PublishResult, SearchResult } from '../../agent/api/contract.ts'
import type {
  AuditEntry,
  InvitationList,
  MemberList,
  NetworkDetail,
  PolicyView,
} from '../../agent/api/membership-contract.ts'
import { readKeyFile } from '../../agent/identity/key-file.ts'
import { ephemeralNodeKey } from '../../agent/identity/node-key.ts'
import { blobOf } from '../../protocols/artifact/artifact.ts'
import { encodeCbor } from '../../protocols/cbor.ts'
import { type Chain, decodeChain, issueCertificate, issueDelegation } from '../../protocols/membership/certificate.ts'
import { decodeToken } from '../../protocols/membership/token.ts'
import { type RealAgent, until } from '../agents.ts'
import { Lab } from '../cluster/members.ts'
import { hasNamespaces } from '../lan.ts'
import { Attacker } from './attacker.ts'
import { invite, rootKeyOf } from './cast.ts'
import { PULLED_BYTES, Puller } from './puller.ts'
import { signAgain } from './signing-again.ts'
import { makeHosts } from './three-hosts.ts'

/** What is promised. */
const CUT_MS_MAX = 5_000
const CLOCK_OFF_MS = 10 * 60_000
/** For what takes a second on a machine that one has for oneself. */
const SOON_MS_MAX = 60_000
/** Between tries of somebody who is not let in. */
const TRY_MS = 100
const DAY_MS = 24 * 3_600_000
const NO_FETCH = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["content:publish"]\n'
const FETCH = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["content:publish", "content:fetch"]\n'

let lab: Lab
beforeAll(async () => {
  lab = await Lab.open()
})
afterAll(() => lab?.[Symbol.asyncDispose]())

type Blob = { digest: Uint8Array; network: Uint8Array }

async function start(name: string, options: Partial<Parameters<Lab['start']>[0]> = {}): Promise<RealAgent> {
  return await lab.start({ name, flags: ['--no-open', '--log-level', 'debug'], ...options })
}

/** Another agent of the network, that knows its policy and shares a blob with all of it. */
async function join(root: RealAgent, name: string, aheadMs?: number): Promise<RealAgent> {
  const agent = await start(name, { bootstrap: [await root.address()], ...(aheadMs !== undefined && { aheadMs }) })
  await agent.client.post('join', { token: (await invite(root, 'staff')).token })
  await until(async () => (await detail(agent)).policyVersion !== null, {
    what: `${name} has the policy`,
    ms: SOON_MS_MAX,
  })
  return agent
}

async function newcomer(root: RealAgent, stack: AsyncDisposableStack): Promise<Attacker> {
  const attacker = stack.use(await Attacker.start())
  await attacker.join(decodeToken((await invite(root, 'staff')).token), await root.address())
  return attacker
}

const detail = (agent: RealAgent) => agent.client.get<NetworkDetail>('networks/home')

async function publish(agent: RealAgent, bytes: Uint8Array, name = 'movie'): Promise<Blob> {
  const file = path(agent.state, name)
  writeFileSync(file, bytes)
  const { artifact } = await agent.json<PublishResult>('publish', file, '--network', 'home')
  const digest = Uint8Array.from(Buffer.from(blobOf(CID.parse(artifact.cid)).digest, 'hex'))
  return { digest, network: Uint8Array.from(Buffer.from((await detail(agent)).id, 'hex')) }
}

async function auditOf(agent: RealAgent): Promise<(AuditEntry & { ms: number })[]> {
  const signal = AbortSignal.timeout(SOON_MS_MAX)
  const entries = await Array.fromAsync(agent.client.lines<AuditEntry>('audit', { limit: 1_000 }, signal))
  return entries.map((entry) => ({ ...entry, ms: Date.parse(entry.at) }))
}

/** When the agent learned the newest revocation of that kind of a key, and when it cut a peer off after that, by its own clock. */
async function cutOff(agent: RealAgent, peerId: string, event = 'member.revoked', of = peerId) {
  const found = async () => {
    const entries = await auditOf(agent)
    const arrived = entries.findLast((one) => one.event === event && one.peerId === of)
    const cut = entries.findLast((one) => one.event === 'peer.cut' && one.peerId === peerId)
    return arrived && cut && cut.ms >= arrived.ms && { arrivedMs: arrived.ms, cutMs: cut.ms, why: String(cut.why) }
  }
  return await until(found, {
    what: () => `${agent.name} cuts it off:\n${agent.log.slice(-20).join('\n')}`,
    ms: SOON_MS_MAX,
  })
}

function expectInTime(where: string, { arrivedMs, cutMs }: { arrivedMs: number; cutMs: number }): void {
  console.log(`${where}: cut ${cutMs - arrivedMs} ms after the record arrived`)
  expect(cutMs - arrivedMs).toBeLessThan(CUT_MS_MAX)
}

async function runs(pullers: readonly Puller[]): Promise<void> {
  const before = pullers.map(({ bytes }) => bytes)
  await until(() => pullers.every(({ bytes }, nth) => bytes > (before[nth] ?? 0) + 2 ** 20), {
    what: 'transfers run',
    ms: SOON_MS_MAX,
  })
}

const revoke = (root: RealAgent, peerId: string, how: object = {}) => root.client.post(`members/${peerId}/revoke`, how)

async function expectOut(who: Attacker, agents: Iterable<RealAgent>): Promise<void> {
  for (const agent of agents) await expect(who.enter(await agent.address()), agent.name).rejects.toThrow()
}

/** Resolves when the agent has been told of an artifact, with when that was. */
async function toldOf(agent: RealAgent, name: string): Promise<number> {
  const entry = await until(
    () => agent.logged('record.changed').find((one) => one.kind === 'artifact' && one.name === name),
    { what: () => `${agent.name} is told of ${name}:\n${agent.log.slice(-20).join('\n')}`, ms: SOON_MS_MAX },
  )
  return Date.parse(entry.time)
}

describe('in a network of five', () => {
  const stack = new AsyncDisposableStack()
  const others = { right: 0, ahead: CLOCK_OFF_MS, behind: -CLOCK_OFF_MS }
  const holders = new Map<string, RealAgent>()
  let root: RealAgent
  let honest: Attacker
  let revoked: Attacker
  let blob: Blob
  const right = () => holders.get('right') ?? root

  beforeAll(async () => {
    root = await start('root')
    await root.client.post('networks', { name: 'home' })
    const bytes = randomBytes(PULLED_BYTES)
    await Promise.all(
      Object.entries(others).map(async ([name, aheadMs]) => {
        const holder = await join(root, name, aheadMs)
        blob = await publish(holder, bytes)
        holders.set(name, holder)
      }),
    )
    honest = await newcomer(root, stack)
    revoked = await newcomer(root, stack)
  })
  afterAll(() => stack.disposeAsync())

  it('a policy that takes content:fetch away ends service at the next request, and gives it back likewise', async () => {
    const puller = new Puller(honest, await right().address(), blob)
    await runs([puller])
    const { version } = await root.client.put<PolicyView>('policy', { text: NO_FETCH })
    expect(await puller.ended).toMatch(/does not have it/)
    const changed = (await auditOf(right())).find((one) => one.event === 'policy.changed' && one.version === version)
    expect(puller.lastServedAskedMs).toBeLessThanOrEqual(changed?.ms ?? 0)
    expect(honest.isIn(await right().address())).toBe(true)
    const { version: next } = await root.client.put<PolicyView>('policy', { text: FETCH })
    for (const holder of holders.values())
      await until(async () => (await detail(holder)).policyVersion === next, {
        what: 'it is allowed again',
        ms: SOON_MS_MAX,
      })
    const again = new Puller(honest, await right().address(), blob)
    await runs([again])
    await honest.hangUp(await right().address())
    await again.ended
  })

  it('a revocation cuts transfers that run, also where the clock is ten minutes ahead or behind', async () => {
    const pullers = new Map<string, Puller>()
    for (const [name, holder] of holders) pullers.set(name, new Puller(revoked, await holder.address(), blob))
    await runs([...pullers.values()])
    await revoke(root, revoked.peerId, { reason: 'lab' })
    for (const [name, holder] of holders) {
      const puller = pullers.get(name)
      await puller?.ended
      const cut = await cutOff(holder, revoked.peerId)
      expectInTime(`clock ${name}`, cut)
      expect(cut.why).toMatch(/^the key of ".*" was revoked$/)
      // By the clock of the one who served.
      const askedMs = (puller?.lastServedAskedMs ?? 0) + others[name as keyof typeof others]
      expect(askedMs).toBeLessThanOrEqual(cut.cutMs)
    }
    await expectOut(revoked, [root, ...holders.values()])
    // Nor does a token bring it back, that would let in anybody else.
    const { token, invitation } = await invite(root, 'staff')
    await expect(revoked.join(decodeToken(token), await root.address())).rejects.toThrow(/revoked/)
    const { invitations } = await root.client.get<InvitationList>('invitations')
    expect(invitations.find(({ id }) => id === invitation.id)).toMatchObject({ used: 0, state: 'open' })
  })

  it('who was away hears of a revocation before anything else, and serves the revoked no more from then on', async () => {
    const out = await newcomer(root, stack)
    const address = await right().address()
    await out.enter(address)
    await right().end('SIGKILL')
    await revoke(root, out.peerId)
    await publish(root, randomBytes(1_000), 'later')
    const pullers: Puller[] = []
    const tried = new AbortController()
    const trying = (async () => {
      while (!tried.signal.aborted) {
        const puller = new Puller(out, address, blob)
        pullers.push(puller)
        await puller.ended
        await delay(TRY_MS)
      }
    })()
    const startedMs = Date.now()
    holders.set('right', await lab.restart(right()))
    const toldMs = await toldOf(right(), 'later')
    tried.abort()
    await trying
    const entries = (await auditOf(right())).filter(({ ms, peerId }) => ms >= startedMs && peerId === out.peerId)
    const arrivedMs = entries.find(({ event }) => event === 'member.revoked')?.ms ?? 0
    expect(arrivedMs).toBeGreaterThan(0)
    expect(arrivedMs).toBeLessThanOrEqual(toldMs)
    // It may have come before the root did. Then it was cut; and afterwards it was given nothing.
    const wasIn = entries.some(({ event }) => event === 'peer.admitted')
    const cut = wasIn ? await cutOff(right(), out.peerId) : { arrivedMs, cutMs: arrivedMs }
    expectInTime('away', cut)
    expect(Math.max(...pullers.map(({ lastServedAskedMs }) => lastServedAskedMs))).toBeLessThanOrEqual(cut.cutMs)
    await expectOut(out, [right()])
  })

  it('holds after everybody was killed, whoever is back first', async () => {
    await Promise.all([root, ...holders.values()].map((agent) => agent.end('SIGKILL')))
    for (const [name, holder] of holders) holders.set(name, await lab.restart(holder))
    await expectOut(revoked, holders.values())
    await honest.enter(await right().address())
    root = await lab.restart(root)
    await expectOut(revoked, [root])
    const refusals = (await auditOf(right())).filter((one) => one.event === 'peer.refused')
    expect(refusals.map(({ peerId }) => peerId)).toContain(revoked.peerId)
  })

  it('covers what a revoked issuer gave after a stated time, and all of it when no time is stated', async () => {
    const gate = await join(root, 'gate')
    const { peerId } = await gate.status()
    const known = async () => (await root.client.get<MemberList>('members')).members.some(({ name }) => name === 'gate')
    await until(known, { what: 'the root knows the delegate', ms: SOON_MS_MAX })
    await root.client.post('networks/home/delegate', { member: 'gate', may: ['issue'], days: 30 })
    await until(async () => (await detail(gate)).issues, { what: 'the delegate has its delegation', ms: SOON_MS_MAX })
    const early = await newcomer(gate, stack)
    const statedMs = Math.max(Date.now(), early.credentials[0]?.chain.statement.issued ?? 0)
    await until(() => Date.now() > statedMs, { what: 'time passes' })
    const late = await newcomer(gate, stack)
    expect(late.credentials[0]?.chain.delegation).toBeDefined()
    const address = await right().address()
    const [first, second] = [new Puller(early, address, blob), new Puller(late, address, blob)]
    await runs([first, second])

    await revoke(root, peerId, { issuer: true, issuedAfter: new Date(statedMs).toISOString() })
    await second.ended
    const cut = await cutOff(right(), late.peerId, 'issuer.revoked', peerId)
    expectInTime('issued after the stated time', cut)
    expect(cut.why).toMatch(/^whoever issued the certificate of ".*" was revoked$/)
    await runs([first])
    await expectOut(late, [root, right()])
    const gone = async () => (await right().status()).peers.every((peer) => peer.peerId !== peerId)
    await until(gone, { what: 'the delegate is out as well', ms: SOON_MS_MAX })

    await revoke(root, peerId, { issuer: true })
    await first.ended
    expectInTime('issued before', await cutOff(right(), early.peerId, 'issuer.revoked', peerId))
    await expectOut(early, [root, right()])
  })

  it('names a key: another encoding, signature, name or issuer does not bring it back', async () => {
    const attacker = stack.use(await Attacker.start())
    const address = await right().address()
    const variants = encodingsOf(attacker, root, (await detail(root)).id)
    const { secret, network } = honest.credentials[0] ?? never()
    const show = (chain: Chain) => attacker.credentials.splice(0, 1, { secret, network, chain })
    const letIn: string[] = []
    for (const [what, { chain }] of Object.entries(variants)) {
      show(chain)
      const isIn = await attacker.enter(address).then(
        () => true,
        () => false,
      )
      if (isIn) letIn.push(what)
      await attacker.hangUp(address)
    }
    const good = Object.entries(variants).filter(([, { isGood }]) => isGood)
    expect(letIn).toEqual(good.map(([what]) => what))
    await revoke(root, attacker.peerId)
    await until(
      async () =>
        (await auditOf(right())).some((one) => one.event === 'member.revoked' && one.peerId === attacker.peerId),
      {
        what: 'the revocation is there',
        ms: SOON_MS_MAX,
      },
    )
    for (const { chain } of Object.values(variants)) {
      show(chain)
      await expectOut(attacker, [root, right()])
    }
  })
})

/** Certificates of one key: some with the same fields in other bytes, some with other fields. Good ones would do if it were not revoked. */
function encodingsOf(
  { key }: Attacker,
  root: RealAgent,
  id: string,
): Record<string, { chain: Chain; isGood: boolean }> {
  const network = Uint8Array.from(Buffer.from(id, 'hex'))
  const signer = rootKeyOf(root, id)
  const issued = Date.now()
  const times = { issued, notBefore: issued, notAfter: issued + DAY_MS }
  const fields = { network, subject: key.publicKey, name: 'thief', labels: { role: 'staff' }, ...times }
  const chain = issueCertificate(fields, signer)
  const { bytes } = chain.statement
  const [signature, payload] = [bytes.subarray(0, 64), bytes.subarray(64)]
  const secret = readKeyFile(path(root.state, 'networks', `${id}.root`), '') ?? never()
  const again = signAgain(secret, Buffer.concat([Buffer.from('undernet/member/1\0'), payload]))
  const delegate = ephemeralNodeKey()
  const right = { network, subject: delegate.publicKey, may: ['issue'], lifetimeMsMax: DAY_MS, ...times }
  const delegation = issueDelegation(right, signer)
  // Says the same fields, and is not what it was read from.
  const as = (other: Uint8Array): Chain => ({ ...chain, bytes: other })
  const grown = Buffer.concat([signature.subarray(0, 32), addOrder(signature.subarray(32)), payload])
  return {
    'as it was given': { chain, isGood: true },
    'signed again': { chain: decodeChain(encodeCbor([Buffer.concat([again, payload])])), isGood: true },
    'under another name': {
      chain: issueCertificate({ ...fields, name: 'somebody', labels: {} }, signer),
      isGood: true,
    },
    'by a delegate': { chain: issueCertificate(fields, delegate, delegation), isGood: true },
    'a signature with the order added': { chain: as(encodeCbor([grown])), isGood: false },
    'a list in a longer form': {
      chain: as(Buffer.concat([Buffer.from([0x98, 1]), chain.bytes.subarray(1)])),
      isGood: false,
    },
    'with a delegation that is not its own': { chain: as(encodeCbor([bytes, delegation.bytes])), isGood: false },
  }
}

/** The same number for who takes it modulo the order of the group. */
function addOrder(bytes: Uint8Array): Uint8Array {
  const order = 2n ** 252n + 27742317777372353535851937790883648493n
  const value = BigInt(`0x${Buffer.from(bytes).reverse().toString('hex')}`) + order
  return Buffer.from(value.toString(16).padStart(64, '0'), 'hex').reverse()
}

describe.skipIf(!hasNamespaces)('of two sides that do not reach each other', () => {
  it('the one that heard nothing cuts a transfer that runs when it hears of it, before it hears anything else', async () => {
    // The receiver is slow, so that the transfer outlasts the partition.
    using hosts = makeHosts(3, '8mbit')
    const on = (nth: number, bootstrap: string[]) => ({
      namespace: hosts.namespace(nth),
      listen: `/ip4/${hosts.address(nth)}/tcp/7477`,
      flags: ['--no-open', '--log-level', 'debug'],
      bootstrap,
    })
    const root = await lab.start({ name: 'root', ...on(0, []) })
    await root.client.post('networks', { name: 'home' })
    const holder = await lab.start({ name: 'holder', ...on(1, [await root.address()]) })
    const bootstrap = [await root.address(), await holder.address()]
    const leaver = await lab.start({ name: 'leaver', ...on(2, bootstrap) })
    for (const agent of [holder, leaver])
      await agent.client.post('join', { token: (await invite(root, 'staff')).token })
    await publish(holder, randomBytes(64 * 2 ** 20))
    const known = async () => (await leaver.client.get<SearchResult>('search', { q: 'movie' })).artifacts.length > 0
    await until(known, { what: () => `it is known:\n${leaver.log.slice(-20).join('\n')}`, ms: SOON_MS_MAX })
    const { peerId } = await leaver.status()

    const mend = hosts.pull(0)
    await revoke(root, peerId)
    await publish(root, randomBytes(1_000), 'later')
    const getting = leaver.run('get', 'movie', '--to', path(leaver.state, 'got'))
    await until(async () => (await holder.status()).content.servedBytes > 2 ** 20, {
      what: 'it is served',
      ms: SOON_MS_MAX,
    })
    expect((await auditOf(holder)).filter(({ event }) => event === 'member.revoked')).toEqual([])
    const alone = async () => (await holder.status()).peers.every(({ name }) => name !== 'root')
    await until(alone, { what: 'the holder has noticed that the root is gone', ms: SOON_MS_MAX })
    mend()
    const [cut, toldMs] = await Promise.all([cutOff(holder, peerId), toldOf(holder, 'later')])
    expectInTime('after a partition', cut)
    expect(toldMs).toBeGreaterThanOrEqual(cut.arrivedMs)
    expect((await getting).code).not.toBe(0)
  })
})

function never(): never {
  throw new Error('not there')
}
