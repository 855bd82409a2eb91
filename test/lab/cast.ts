/**
 * Two agents of one closed network, one of which takes part in the open network, too; and everybody who tries what he can get of them.
 */
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { CID } from 'multiformats/cid'
import type { PublishResult } from '../../agent/api/contract.ts'
import type { InviteResult, NetworkDetail } from '../../agent/api/membership-contract.ts'
import { readKeyFile, signerOf } from '../../agent/identity/key-file.ts'
import { ephemeralNodeKey } from '../../agent/identity/node-key.ts'
import { blobOf } from '../../protocols/artifact/artifact.ts'
import type { Credentials } from '../../protocols/hello/hello.ts'
import { issueCertificate } from '../../protocols/membership/certificate.ts'
import { networkOf } from '../../protocols/membership/network.ts'
import type { StatementSigner } from '../../protocols/membership/statement.ts'
import { decodeToken, type Token } from '../../protocols/membership/token.ts'
import { type AgentOptions, RealAgent, until } from '../agents.ts'
import { Attacker, keyOf } from './attacker.ts'
import type { Target } from './attempts.ts'
import { StockPeer } from './stock-peer.ts'

const DAY_MS = 24 * 3_600_000
const SECRET_NAME = 'payroll'
/** Guests see what there is, and fetch nothing. */
const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["content:publish"]

[[grants]]
from = "label:role=staff"
to = "*"
allow = ["content:fetch"]
`

/** An agent that is tried on. */
export type Victim = { readonly agent: RealAgent; readonly target: Target }
export type Attackers = Readonly<
  Record<'member' | 'guest' | 'former, revoked' | 'former, ended' | 'other network' | 'stranger', Attacker>
>

export class Cast implements AsyncDisposable {
  /** Made the network; takes no part in the open one. */
  readonly closed: Victim
  readonly open: Victim
  readonly attackers: Attackers
  readonly stock: StockPeer
  readonly #stack: AsyncDisposableStack

  private constructor(parts: Pick<Cast, 'closed' | 'open' | 'attackers' | 'stock'>, stack: AsyncDisposableStack) {
    this.closed = parts.closed
    this.open = parts.open
    this.attackers = parts.attackers
    this.stock = parts.stock
    this.#stack = stack
  }

  static async start(options: Pick<AgentOptions, 'entry' | 'env'>): Promise<Cast> {
    await using stack = new AsyncDisposableStack()
    const closed = stack.use(await RealAgent.start({ ...options, name: 'closed', flags: ['--no-open'] }))
    const open = stack.use(await RealAgent.start({ ...options, name: 'open' }))
    const home = await closed.client.post<NetworkDetail>('networks', { name: 'home' })
    const network = Uint8Array.from(Buffer.from(home.id, 'hex'))
    await open.client.post('join', { token: (await invite(closed, 'staff')).token })
    await closed.client.put('policy', { text: POLICY })

    const attackers = await startAttackers(closed, stack)
    await joinAll(closed, home.id, attackers)
    const tokens = await spentTokens(closed, stack)
    // The revocation goes ahead of the policy that is set after it.
    const out = attackers['former, revoked']
    await closed.client.post(`members/${out.peerId}/revoke`, { reason: 'lab' })
    await until(async () => !out.isIn(await closed.address()), { what: 'the revoked is out' })
    // What it heard while it was a member it may keep.
    out.heard.length = 0
    out.shown.length = 0
    const { version } = await closed.client.put<{ version: number }>('policy', { text: POLICY })
    await until(async () => (await open.client.get<NetworkDetail>('networks/home')).policyVersion === version, {
      what: 'the other agent knows who is revoked, and the policy',
      ms: 30_000,
    })
    const issuer = keyOf(await open.address())
    const parts = {
      closed: {
        agent: closed,
        target: { ...(await publish(closed, network)), tokens, fellow: keyOf(await open.address()) },
      },
      open: {
        agent: open,
        target: {
          ...(await publish(open, network)),
          tokens: tokens.map((token) => ({ ...token, issuer })),
          fellow: keyOf(await closed.address()),
        },
      },
      attackers,
      stock: stack.use(await StockPeer.start()),
    }
    return new Cast(parts, stack.move())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

export async function invite(agent: RealAgent, role: string, uses = 1): Promise<InviteResult> {
  return await agent.client.post<InviteResult>('invitations', { labels: { role }, uses, expiresSeconds: 3_600 })
}

/** The key that made a network, from where the agent keeps it. */
export function rootKeyOf(agent: RealAgent, network: string): StatementSigner {
  const key = readKeyFile(join(agent.state, 'networks', `${network}.root`), '')
  if (key === undefined) throw new Error('no root key there')
  return signerOf(key)
}

async function startAttackers(closed: RealAgent, stack: AsyncDisposableStack): Promise<Attackers> {
  const start = async () => stack.use(await Attacker.start())
  const attackers = {
    member: await start(),
    guest: await start(),
    'former, revoked': await start(),
    'former, ended': await start(),
    'other network': await start(),
    stranger: await start(),
  }
  const address = await closed.address()
  for (const [who, role] of [
    ['member', 'staff'],
    ['guest', 'guest'],
    ['former, revoked', 'staff'],
  ] as const)
    await attackers[who].join(decodeToken((await invite(closed, role)).token), address)
  return attackers
}

/** Those who cannot join by a token any more, or never could. */
async function joinAll(closed: RealAgent, id: string, attackers: Attackers): Promise<void> {
  const [{ secret, network } = never()] = attackers.member.credentials
  const ended = attackers['former, ended']
  const issued = Date.now() - 100 * DAY_MS
  const times = { issued, notBefore: issued, notAfter: Date.now() - 10 * DAY_MS }
  const fields = { network, subject: ended.key.publicKey, name: 'ended', labels: { role: 'staff' }, ...times }
  const chain = issueCertificate(fields, rootKeyOf(closed, id))
  // It says of its certificate what nobody would believe who looks at it.
  const statement = { ...chain.statement, notAfter: Date.now() + DAY_MS }
  ended.credentials.push({ network, secret, chain: { ...chain, statement } })
  attackers['other network'].credentials.push(ownNetwork(attackers['other network'].key.publicKey))
}

/** A network of somebody's own, who has the id of the other one, too: it is no secret. */
function ownNetwork(subject: Uint8Array): Credentials {
  const root = ephemeralNodeKey()
  const network = Uint8Array.from(networkOf(root.publicKey))
  const issued = Date.now()
  const times = { issued, notBefore: issued, notAfter: issued + DAY_MS }
  const chain = issueCertificate({ network, subject, name: 'member', labels: { role: 'staff' }, ...times }, root)
  return { network, secret: Uint8Array.from(randomBytes(32)), chain }
}

/** One that nobody made, one that was used up by somebody else, and one that has expired. */
async function spentTokens(closed: RealAgent, stack: AsyncDisposableStack): Promise<Token[]> {
  const used = decodeToken((await invite(closed, 'staff')).token)
  const spender = stack.use(await Attacker.start())
  await spender.join(used, await closed.address())
  await spender.hangUp(await closed.address())
  const { token, invitation } = await invite(closed, 'staff')
  // The least that can be asked for is a minute.
  using db = new DatabaseSync(join(closed.state, 'state.db'), { timeout: 5_000 })
  db.prepare('UPDATE invitations SET expires_ms = ? WHERE id = ?').run(Date.now() - 1_000, invitation.id)
  return [{ ...used, secret: Uint8Array.from(randomBytes(16)) }, used, decodeToken(token)]
}

/** Something that only members may have; and, where there is an open network, something for everybody. */
async function publish(agent: RealAgent, network: Uint8Array): Promise<Omit<Target, 'tokens' | 'fellow'>> {
  const { networks } = await agent.status()
  const isOpen = networks.some(({ kind }) => kind === 'open')
  const put = async (name: string, where: string) => {
    const file = join(agent.state, name)
    const bytes = Buffer.concat([Buffer.from(`${where} of ${name} `.repeat(40)), randomBytes(1_000)])
    writeFileSync(file, bytes)
    const { artifact } = await agent.json<PublishResult>('publish', file, '--network', where)
    return { bytes, digest: Uint8Array.from(Buffer.from(blobOf(CID.parse(artifact.cid)).digest, 'hex')) }
  }
  const closed = await put(SECRET_NAME, 'home')
  const open = isOpen ? (await put('brochure', 'open')).digest : Uint8Array.from(randomBytes(32))
  const address = await agent.address()
  const secretName = SECRET_NAME
  return { address, network, secretName, secret: closed.bytes, secretDigest: closed.digest, openDigest: open }
}

function never(): never {
  throw new Error('the member has not joined')
}
