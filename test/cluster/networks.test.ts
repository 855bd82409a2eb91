/**
 * Two closed networks on one agent, and the open one, in which all of them know each other: what is of one network is in no answer, no
 * log and no file of who is in the other only; and nothing is published by a guess, or left behind when a network is left.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { base32 } from 'multiformats/bases/base32'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { SearchResult } from '../../agent/api/contract.ts'
import type { NetworkDetail } from '../../agent/api/membership-contract.ts'
import { type RealAgent, until } from '../agents.ts'
import {
  allSee,
  filesWith,
  findsNamed,
  invite,
  joinWith,
  Lab,
  publish,
  refuses,
  SOON_MS_MAX,
  says,
  secretOf,
} from './members.ts'

/** Commands that tell what an agent knows. */
const QUESTIONS = [
  ['status'],
  ['peers'],
  ['network', 'list'],
  ['network', 'show'],
  ['member', 'list'],
  ['policy', 'show'],
  ['search'],
  ['invite', '--list'],
  ['audit', '--limit', '1000'],
  ['config', 'show'],
]

describe('two networks on one agent', () => {
  let lab: Lab
  /** In both. */
  let hub: RealAgent
  let red: RealAgent
  let blue: RealAgent
  const ids: Record<string, string> = {}
  const cids: Record<string, string> = {}

  beforeAll(async () => {
    lab = await Lab.open()
    hub = await lab.start({ name: 'hub' })
    const bootstrap = [await hub.address()]
    ;[red, blue] = await Promise.all([
      lab.start({ name: 'first', bootstrap }),
      lab.start({ name: 'second', bootstrap: [...bootstrap] }),
    ])
    for (const [name, as] of [
      ['crimson', 'oboe'],
      ['azure', 'viola'],
    ] as const) {
      ids[name] = (await hub.json<NetworkDetail>('network', 'create', name, '--as', as)).id
    }
    await joinWith(red, await invite(hub, '--network', 'crimson', '--label', 'choir=tenors'), '--as', 'bassoon')
    await joinWith(blue, await invite(hub, '--network', 'azure', '--label', 'choir=basses'), '--as', 'cello')
    cids.crimson = await publish(lab, hub, 'crimson-notes', 'for the winds', '--network', 'crimson')
    cids.azure = await publish(lab, hub, 'azure-notes', 'for the strings', '--network', 'azure')
    await findsNamed(red, 'crimson-notes')
    await findsNamed(blue, 'azure-notes')
    await allSee([hub, red], ['oboe', 'bassoon'], 'crimson')
    await allSee([hub, blue], ['viola', 'cello'], 'azure')
    // The strictest case: they are peers of each other, in the open network.
    const { peerId } = await blue.status()
    await says(red, 'ping', (await blue.status()).listen[0] ?? '')
    await until(async () => (await red.status()).peers.some((peer) => peer.peerId === peerId), {
      what: 'red and blue are peers',
      ms: SOON_MS_MAX,
    })
  })
  afterAll(() => lab?.[Symbol.asyncDispose]())

  test('their members get what is published in theirs', async () => {
    await says(red, 'get', 'crimson-notes', '--to', lab.path('got'))
    expect(readFileSync(join(lab.path('got'), 'crimson-notes'), 'utf8')).toBe('for the winds')
    await says(blue, 'get', cids.azure ?? '', '--to', lab.path('got'))
    expect(readFileSync(join(lab.path('got'), 'azure-notes'), 'utf8')).toBe('for the strings')
  })

  test('no answer, log or file of one has a word of the other', async () => {
    const words = {
      crimson: { names: ['crimson', 'oboe', 'bassoon', 'tenors', 'for the winds'], agent: blue },
      azure: { names: ['azure', 'viola', 'cello', 'basses', 'for the strings'], agent: red },
    }
    for (const [network, { names, agent }] of Object.entries(words)) {
      const id = ids[network] ?? ''
      const secrets = { id: Buffer.from(id, 'hex'), 'id in hex': id, secret: secretOf(hub, id) }
      const said = (await Promise.all(QUESTIONS.map((words) => agent.run(...words)))).map(({ stdout }) => stdout)
      const told = (await Promise.all(QUESTIONS.map((words) => agent.run(...words, '--json')))).map(
        ({ stdout }) => stdout,
      )
      for (const text of [...said, ...told, ...agent.log]) {
        for (const word of [...names, id]) expect(text).not.toContain(word)
      }
      const named = Object.fromEntries(names.map((name) => [name, name]))
      // Nor does the DHT know who has what: its keys have the multihash as text.
      const { multihash } = CID.parse(cids[network] ?? '')
      const content = { digest: multihash.digest, 'key of the DHT': base32.baseEncode(multihash.bytes) }
      expect(filesWith(agent.state, { ...secrets, ...named, ...content })).toEqual([])
    }
  })

  test('and nothing of the other: by name, by CID, in any network that they are in', async () => {
    // Somebody told them the hash; two who have the bytes are their peers.
    for (const [agent, own, other] of [
      [red, 'crimson', 'azure'],
      [blue, 'azure', 'crimson'],
    ] as const) {
      const cid = cids[other] ?? ''
      expect(await refuses(agent, 'get', `${other}-notes`, '--to', lab.path('stolen'))).toContain('no artifact')
      await Promise.all([
        refuses(agent, 'get', cid, '--to', lab.path('stolen1')),
        refuses(agent, 'get', cid, '--network', own, '--to', lab.path('stolen2')),
        refuses(agent, 'get', cid, '--network', 'open', '--to', lab.path('stolen3')),
      ])
      expect(await refuses(agent, 'get', cid, '--network', other, '--to', lab.path('stolen'))).toContain(
        `this node is in no closed network "${other}"`,
      )
    }
    expect(readdirSync(lab.path('')).filter((name) => name.startsWith('stolen'))).toEqual([])
  })

  test('the agent that is in both tells each apart', async () => {
    const names = async (network: string) =>
      (await hub.json<{ artifacts: { name: string; network: string }[] }>('search', '--network', network)).artifacts
    expect(await names('crimson')).toMatchObject([{ name: 'crimson-notes', network: 'crimson' }])
    expect(await names('azure')).toMatchObject([{ name: 'azure-notes', network: 'azure' }])
    const { peers } = await hub.status()
    const of = async (agent: RealAgent) => {
      const { peerId } = await agent.status()
      return peers.find((peer) => peer.peerId === peerId)?.networks
    }
    expect(await of(red)).toEqual(['open', 'crimson'])
    expect(await of(blue)).toEqual(['open', 'azure'])
    // Who is not of a network is nobody there, whatever it is called elsewhere.
    expect(await refuses(hub, 'member', 'show', 'cello', '--network', 'crimson')).toContain('cello')
    expect(await refuses(hub, 'member', 'list')).toContain('azure, crimson')
  })

  test('publishing without a network is refused, and publishes nothing', async () => {
    const file = lab.file('unsaid', 'whose is this?')
    const said = await refuses(hub, 'publish', file)
    expect(said).toMatch(/this node is in 3 networks: open, (azure, crimson|crimson, azure)\n/)
    expect(said).toContain('--network')
    expect(await refuses(red, 'publish', file)).toContain('this node is in 2 networks: open, crimson')
    expect(await refuses(hub, 'publish', file, '--network', 'nowhere')).toContain('no closed network "nowhere"')
    for (const agent of [hub, red, blue]) expect(await says(agent, 'search', 'unsaid')).not.toContain('whose')
  })

  test('a network that is left leaves nothing behind, and the other one stays', async () => {
    const id = ids.crimson ?? ''
    const secret = secretOf(hub, id)
    expect(await refuses(hub, 'network', 'leave', 'crimson')).toContain('the only copy of the root key')
    await says(hub, 'network', 'leave', 'crimson', '--force')
    await expectNoCrimson(hub, id, secret)
    // Who stays notices, and gets nothing more.
    const { peerId } = await hub.status()
    const shared = async () => (await red.status()).peers.find((peer) => peer.peerId === peerId)?.networks
    await until(async () => (await shared())?.join() === 'open', { what: 'red knows that hub left', ms: SOON_MS_MAX })
    const found = async () => (await red.client.get<SearchResult>('search', { limit: 10 })).artifacts.length
    await until(async () => (await found()) === 0, { what: 'red no longer finds what hub shared', ms: SOON_MS_MAX })

    hub = await lab.restart(hub)
    await expectNoCrimson(hub, id, secret)
    await allSee([hub, blue], ['viola', 'cello'], 'azure')
    expect(await says(hub, 'search')).toContain('azure-notes')
  })

  async function expectNoCrimson(agent: RealAgent, id: string, secret: Uint8Array): Promise<void> {
    expect(JSON.stringify(await agent.client.get('networks'))).not.toContain('crimson')
    expect(await refuses(agent, 'member', 'list', '--network', 'crimson')).toContain('no closed network')
    expect(await says(agent, 'search')).not.toContain('crimson')
    const { blobs } = await agent.client.get<{ content: { blobs: number } }>('status').then(({ content }) => content)
    expect(blobs, 'blobs of azure only').toBe(1)
    // The audit log says for good that this network was here.
    const needles = {
      id: Buffer.from(id, 'hex'),
      'id in hex': id,
      secret,
      notes: 'crimson-notes',
      text: 'for the winds',
    }
    expect(filesWith(agent.state, needles)).toEqual([])
  }
})

test('an agent whose open network is off publishes in the only network that it is in', async () => {
  await using lab = await Lab.open()
  const alone = await lab.start({ name: 'alone', flags: ['--no-open'] })
  const file = lab.file('ours', 'ours')
  expect(await refuses(alone, 'publish', file)).toContain('this node is in no network')
  await says(alone, 'network', 'create', 'crimson')
  const { artifact } = await alone.json<{ artifact: { network: string } }>('publish', file)
  expect(artifact.network).toBe('crimson')
  // A policy that lets nobody see it.
  await says(alone, 'policy', 'set', lab.file('none.toml', ''), '--yes')
  const said = await refuses(alone, 'publish', lab.file('unseen', 'unseen'))
  expect(said).toContain('nobody in "crimson" would see it')
  expect(existsSync(join(alone.state, 'networks'))).toBe(true)
})
