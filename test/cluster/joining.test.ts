/**
 * Tokens, as those who get them find them: used twice, at the same moment, at the wrong node, too late, in pieces. Whoever is not let in
 * is told why; whoever lost the answer comes again.
 */
import { createConnection, createServer, type Socket } from 'node:net'
import { multiaddr } from '@multiformats/multiaddr'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { InvitationView, NetworkDetail } from '../../agent/api/membership-contract.ts'
import { NETWORKS_MAX } from '../../protocols/hello/messages.ts'
import { decodeToken, encodeToken, type Token } from '../../protocols/membership/token.ts'
import { type RealAgent, until } from '../agents.ts'
import { allSee, invite, joinWith, Lab, membersOf, refusalOf, refuses, SOON_MS_MAX, says, tryToken } from './members.ts'

const HOUR_MS = 3_600_000
const USED_UP = 'the token was used already'
const UNKNOWN =
  'the node that the token names does not know it: it was withdrawn, that node lost its state, or is too busy to say'

describe('a token', () => {
  let lab: Lab
  /** Made the network. */
  let founder: RealAgent
  /** Another one that may issue. */
  let deputy: RealAgent
  let id: string
  const members = ['founder', 'deputy']

  beforeAll(async () => {
    lab = await Lab.open()
    ;[founder, deputy] = await Promise.all([start('founder'), start('deputy')])
    id = (await founder.json<NetworkDetail>('network', 'create', 'home')).id
    await joinWith(deputy, await invite(founder))
    await allSee([founder, deputy], members)
  })
  afterAll(() => lab?.[Symbol.asyncDispose]())

  const start = (name: string) => lab.start({ name, flags: ['--no-open'] })
  const used = async () => (await founder.client.get<{ invitations: InvitationView[] }>('invitations')).invitations

  test('lets one machine in, and then tells the next one that it was used; the same machine may come again', async () => {
    const [a, b] = await Promise.all([start('a'), start('b')])
    const token = await invite(founder, '--label', 'zone=a')
    expect(await joinWith(a, token)).toMatchObject({ id, name: 'home', member: { name: 'a', labels: { zone: 'a' } } })
    expect(await refusalOf(b, token)).toContain(USED_UP)
    expect((await b.client.get<{ networks: object[] }>('networks')).networks).toEqual([])
    // As if the answer had been lost, and after it lost all of it.
    await joinWith(a, token)
    await says(a, 'network', 'leave', 'home')
    expect(await joinWith(a, token)).toMatchObject({ id, member: { name: 'a', labels: { zone: 'a' } } })
    expect((await used())[0]).toMatchObject({ uses: 1, used: 1, state: 'used-up' })
    expect(await refusalOf(b, token)).toContain(USED_UP)
    members.push('a')
    await allSee([founder, deputy, a], members)
  })

  test('gives a name that nobody has, and says what keeps the machine itself from joining', async () => {
    const [a, full] = await Promise.all([start('a'), start('full')])
    const { member } = await joinWith(a, await invite(founder))
    expect(member.name).toMatch(/^a-[a-z2-7]{5}$/)
    await says(a, 'network', 'leave', 'home')
    await lab.end(a)

    for (let nth = 0; nth < NETWORKS_MAX; nth++) await full.client.post('networks', { name: `own${nth}` })
    const said = await refusalOf(full, await invite(founder))
    expect(said).toMatch(/^agent: a node is in at most 16 networks\n +Leave another one first\./)
    await lab.end(full)
  })

  test('lets in one of two machines that come at the same moment', async () => {
    const both = await Promise.all([start('c'), start('d')])
    for (let round = 0; round < 3; round++) {
      const token = await invite(founder)
      const outcomes = await Promise.all(both.map((agent) => tryToken(agent, token)))
      const codes = outcomes.map(({ code }) => code)
      const won = codes.indexOf(0)
      expect(
        codes.filter((code) => code === 0),
        JSON.stringify(outcomes),
      ).toHaveLength(1)
      expect(outcomes[1 - won]?.stderr).toContain(USED_UP)
      expect((await used())[0]).toMatchObject({ uses: 1, used: 1 })
      // Who lost is in none of it.
      expect(await both[1 - won]?.client.get('networks')).toMatchObject({ networks: [] })
      await says(both[won] as RealAgent, 'network', 'leave', 'home')
    }
    await Promise.all(both.map((agent) => lab.end(agent)))
  })

  test('is honoured by its issuer only: another one of the same network does not know it', async () => {
    const late = await start('late')
    await says(founder, 'network', 'delegate', 'home', 'deputy')
    await until(async () => (await deputy.client.get<NetworkDetail>('networks/home')).issues, {
      what: 'the deputy may issue',
      ms: SOON_MS_MAX,
    })
    const [address = ''] = (await deputy.status()).listen
    const { issuer } = decodeToken(await invite(deputy))
    const elsewhere = altered(await invite(founder), { issuer, addresses: [multiaddr(address).decapsulate('/p2p')] })
    expect(await refusalOf(late, elsewhere)).toContain(UNKNOWN)
    // Nobody answers under the founder's name where the deputy is.
    const misled = altered(await invite(founder), { addresses: [multiaddr(address).decapsulate('/p2p')] })
    expect(await refusalOf(late, misled)).toContain('the node that made the token cannot be reached')
    expect(await joinWith(late, await invite(deputy))).toMatchObject({ id, member: { name: 'late' } })
    members.push('late')
    await allSee([founder, deputy, late], members)
    expect((await membersOf(founder)).find(({ name }) => name === 'late')?.issuer).toMatchObject({ name: 'deputy' })
  })

  test('that is foreign, damaged, or made here is refused with the reason', async () => {
    const stranger = await start('stranger')
    const away = await stranger.json<NetworkDetail>('network', 'create', 'away')
    const token = await invite(founder)
    const foreign = altered(token, { network: Uint8Array.from(Buffer.from(away.id, 'hex')) })
    expect(await refusalOf(stranger, foreign)).toContain('the token is not the one that was made')
    const guessed = altered(token, { secret: new Uint8Array(16) })
    expect(await refusalOf(stranger, guessed)).toContain(UNKNOWN)
    const flipped = `${token.slice(0, 60)}${token[60] === 'a' ? 'b' : 'a'}${token.slice(61)}`
    for (const damaged of [flipped, token.slice(0, -3), token.slice(0, 30), 'un1']) {
      const said = await refusalOf(stranger, damaged)
      expect(said).toContain('this is not a token')
      expect(said).toContain('Copy the whole line that `agent invite` printed.')
    }
    expect(await refusalOf(stranger, 'home')).toContain('this is not a token')
    expect(await refuses(stranger, 'join', '--file', lab.path('nothing'))).toContain('nothing')
    expect(await refusalOf(founder, token)).toContain('this node made the token itself')
    // Nothing of that has used it up.
    const [invitation] = await used()
    expect(invitation).toMatchObject({ used: 0, state: 'open' })
    // White space and capitals are what mail programs make of it.
    expect(await joinWith(stranger, token.toUpperCase().replace(/(.{40})/g, '$1\n  '))).toMatchObject({ id })
    await says(stranger, 'network', 'leave', 'home')
    await lab.end(stranger)
  })

  test('that was withdrawn, or has ended, is refused with the reason; so is who was put out', async () => {
    const [gone, ended] = await Promise.all([start('gone'), start('ended')])
    const token = await invite(founder)
    const [invitation] = await used()
    await says(founder, 'invite', '--withdraw', invitation?.id ?? '')
    expect(await refusalOf(gone, token)).toContain(UNKNOWN)

    await joinWith(gone, await invite(founder))
    await allSee([founder], [...members, 'gone'])
    await says(founder, 'member', 'revoke', 'gone', '--yes')
    await says(gone, 'network', 'leave', 'home')
    expect(await refusalOf(gone, await invite(founder))).toContain("this node's key was revoked in that network")

    const short = await invite(founder, '--expires', '1h')
    founder = await lab.restart(founder, { aheadMs: HOUR_MS })
    expect(await refusalOf(ended, short)).toContain('the token has expired')
    founder = await lab.restart(founder, { aheadMs: 0 })
    await lab.end(founder)
    const unreachable = await refusalOf(ended, short)
    expect(unreachable).toContain('the node that made the token cannot be reached')
    expect(unreachable).toMatch(/can this machine reach it at \/ip4\/127\.0\.0\.1\/tcp\/\d+\?/)
    founder = await lab.restart(founder)
    await joinWith(ended, short)
  })

  test('whose answer was lost on its way lets the same machine in when it comes again, and nobody else', async () => {
    const [unlucky, other] = await Promise.all([start('unlucky'), start('other')])
    const token = await invite(founder)
    const invitation = (await used())[0]?.id ?? ''
    const isUsed = async () => (await used()).some((one) => one.id === invitation && one.used === 1)
    const proxy = await cutBefore((await founder.status()).listen[0] ?? '', isUsed)
    const through = altered(token, { addresses: [multiaddr(`/ip4/127.0.0.1/tcp/${proxy.port}`)] })
    const { code, stdout } = await tryToken(unlucky, through)
    expect(code, stdout).not.toBe(0)
    expect(await isUsed(), 'it was let in, and does not know').toBe(true)
    expect(await unlucky.client.get('networks')).toMatchObject({ networks: [] })
    expect(await refusalOf(other, token)).toContain(USED_UP)
    expect(await joinWith(unlucky, token)).toMatchObject({ id, member: { name: 'unlucky' } })
    expect((await used()).find((one) => one.id === invitation)).toMatchObject({ used: 1 })
  })
})

function altered(text: string, changes: Partial<Token>): string {
  return encodeToken({ ...decodeToken(text), ...changes })
}

/** A proxy that ends a connection instead of passing on what the far side says, once that is so. */
async function cutBefore(address: string, isTime: () => Promise<boolean>): Promise<{ port: number }> {
  const [, port] = /\/tcp\/(\d+)/.exec(address) ?? []
  const sockets = new Set<Socket>()
  const server = createServer((near) => {
    const far = createConnection({ host: '127.0.0.1', port: Number(port) })
    for (const socket of [near, far]) {
      sockets.add(socket)
      socket.on('error', () => undefined)
      socket.on('close', () => {
        near.destroy()
        far.destroy()
      })
    }
    near.pipe(far)
    const passOn = async () => {
      for await (const chunk of far) {
        if (await isTime()) return void near.destroy()
        near.write(chunk as Buffer)
      }
    }
    passOn().catch(() => near.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const bound = server.address()
  if (bound === null || typeof bound === 'string') throw new Error('no TCP port')
  return { port: bound.port }
}
