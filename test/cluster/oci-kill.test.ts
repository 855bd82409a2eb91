/**
 * kill -9 in the middle of pushes to a real agent, and of a pull from another one: what was acknowledged is there afterwards, what came half goes on from
 * there, and nothing is half of anything.
 */
import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { RealAgent, until } from '../agents.ts'
import { invite, joinWith, Lab, says } from './members.ts'

const MIB = 1024 * 1024
const LAYER_BYTES = 24 * MIB
/** Enough that the kills meet different steps of a push. */
const KILLS = 3
const REPOSITORY = 'open/kill'
const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json'
const SOON = { ms: 60_000 }
/** What a peer is sent in a second. */
const RATE_BYTES = 8 * MIB

describe('kill -9', () => {
  const state = mkdtempSync(join(tmpdir(), 'undernet-oci-kill-'))
  let agent: RealAgent
  let url = ''

  const start = async () => {
    agent = await RealAgent.start({ name: 'registry', state })
    const { http } = await agent.status()
    url = `${http}/v2/${REPOSITORY}`
  }
  const kill = () => agent.end('SIGKILL')
  const begin = async () => {
    const { headers } = await fetch(`${url}/blobs/uploads/`, { method: 'POST' })
    return new URL(headers.get('location') ?? '', url).href
  }
  const here = async (place: string) => {
    const { status, headers } = await fetch(place)
    expect(status).toBe(204)
    const [, last = '0'] = (headers.get('range') ?? '').split('-')
    return last === '0' ? 0 : Number(last) + 1
  }
  const bytesOf = async (path: string) => {
    const answer = await fetch(`${url}/${path}`)
    return answer.ok ? Buffer.from(await answer.arrayBuffer()) : undefined
  }
  const pushBlob = async (bytes: Uint8Array<ArrayBuffer>) => {
    const query = new URLSearchParams({ digest: digestOf(bytes) }).toString()
    const { status } = await fetch(`${url}/blobs/uploads/?${query}`, { method: 'POST', body: bytes })
    return status === 201
  }

  beforeAll(start)
  afterAll(async () => {
    await agent[Symbol.asyncDispose]()
    rmSync(state, { recursive: true, force: true })
  })

  it('in the middle of a layer leaves an upload that goes on', async () => {
    const layer = randomBytes(LAYER_BYTES)
    const path = new URL(await begin()).pathname
    const at = () => new URL(path, url).href
    const sending = request(at(), { method: 'PATCH', headers: { 'content-length': LAYER_BYTES } })
    const broken = new Promise((resolve) => sending.once('error', resolve))
    sending.write(layer.subarray(0, LAYER_BYTES / 2))
    await until(async () => (await here(at())) > MIB, { ...SOON, what: 'some of it came' })
    await kill()
    await broken
    await start()
    const offset = await here(at())
    expect(offset).toBeGreaterThan(MIB)
    expect(offset).toBeLessThanOrEqual(LAYER_BYTES / 2)
    const headers = { 'content-range': `${offset}-${LAYER_BYTES - 1}` }
    const patch = await fetch(at(), { method: 'PATCH', headers, body: layer.subarray(offset) })
    expect([patch.status, patch.headers.get('range')]).toEqual([202, `0-${LAYER_BYTES - 1}`])
    const digest = digestOf(layer)
    expect((await fetch(`${at()}?digest=${encodeURIComponent(digest)}`, { method: 'PUT' })).status).toBe(201)
    expect((await bytesOf(`blobs/${digest}`))?.equals(layer)).toBe(true)
  })

  it('in the middle of pushes loses nothing that was acknowledged, and leaves no half image', async () => {
    const acknowledged = new Set<string>()
    let tagged = ''
    for (let round = 0; round < KILLS; round++) {
      let isOver = false
      let moving = ''
      const pushing = (async () => {
        while (!isOver) {
          const blob = randomBytes(100_000)
          if (!(await pushBlob(blob))) continue
          acknowledged.add(digestOf(blob))
          const image = manifestOf(blob)
          moving = digestOf(image)
          const headers = { 'content-type': MANIFEST_TYPE }
          const { status } = await fetch(`${url}/manifests/latest`, { method: 'PUT', headers, body: image })
          if (status === 201) tagged = moving
        }
        // It fails, as its agent is killed.
      })().catch(() => {})
      const before = acknowledged.size
      await until(() => acknowledged.size > before + 2 + round, { ...SOON, what: 'pushes are under way' })
      isOver = round % 2 === 0
      await kill()
      isOver = true
      await pushing
      await start()
      const manifest = await bytesOf('manifests/latest')
      expect([tagged, moving]).toContain(digestOf(manifest ?? Buffer.alloc(0)))
      const { layers } = JSON.parse(String(manifest)) as { layers: { digest: string }[] }
      for (const { digest } of layers)
        expect(digestOf((await bytesOf(`blobs/${digest}`)) ?? Buffer.alloc(0))).toBe(digest)
      tagged = digestOf(manifest ?? Buffer.alloc(0))
    }
    for (const digest of acknowledged) {
      const bytes = await bytesOf(`blobs/${digest}`)
      expect([digest, bytes && digestOf(bytes)]).toEqual([digest, digest])
    }
    expect(acknowledged.size).toBeGreaterThan(KILLS)
  })
})

describe('kill -9 in the middle of a pull', () => {
  let lab: Lab
  beforeAll(async () => {
    lab = await Lab.open()
  })
  afterAll(() => lab[Symbol.asyncDispose]())

  it('costs the pull, and not what came of it', async () => {
    const layer = randomBytes(LAYER_BYTES)
    const image = manifestOf(layer)
    const path = 'home/app'
    const urlOf = async (agent: RealAgent) => `${(await agent.status()).http}/v2/${path}`
    // Slow enough that it is killed before the end.
    const holder = await lab.start({ name: 'holder', flags: ['--no-open', '--upload-rate', String(RATE_BYTES)] })
    await says(holder, 'network', 'create', 'home')
    const bootstrap = [await holder.address()]
    let puller = await lab.start({ name: 'puller', flags: ['--no-open'], bootstrap })
    await joinWith(puller, await invite(holder))
    const url = await urlOf(holder)
    const query = new URLSearchParams({ digest: digestOf(layer) }).toString()
    expect((await fetch(`${url}/blobs/uploads/?${query}`, { method: 'POST', body: layer })).status).toBe(201)
    const headers = { 'content-type': MANIFEST_TYPE }
    expect((await fetch(`${url}/manifests/1`, { method: 'PUT', headers, body: image })).status).toBe(201)

    const manifestAt = async (agent: RealAgent) => {
      const answer = await fetch(`${await urlOf(agent)}/manifests/1`)
      return answer.ok ? Buffer.from(await answer.arrayBuffer()) : undefined
    }
    await until(async () => (await manifestAt(puller))?.equals(image) === true, { ...SOON, what: 'the tag came' })
    const pull = async (agent: RealAgent) => {
      const answer = await fetch(`${await urlOf(agent)}/blobs/${digestOf(layer)}`)
      expect(answer.status).toBe(200)
      return Buffer.from(await answer.arrayBuffer())
    }
    const fetched = async (agent: RealAgent) => (await agent.status()).content.fetchedBytes
    const broken = pull(puller).then(
      () => 'whole',
      () => 'broken',
    )
    await until(async () => (await fetched(puller)) > LAYER_BYTES / 2, { ...SOON, what: 'half of it came' })
    await puller.end('SIGKILL')
    expect(await broken).toBe('broken')

    puller = await lab.restart(puller)
    await until(async () => (await manifestAt(puller))?.equals(image) === true, { ...SOON, what: 'the tag is there' })
    expect((await pull(puller)).equals(layer)).toBe(true)
    expect(await fetched(puller)).toBeLessThan((LAYER_BYTES * 3) / 4)
  })
})

/** An image of one layer, which is its own configuration: nobody runs it. */
function manifestOf(layer: Uint8Array): Buffer<ArrayBuffer> {
  const one = { mediaType: 'application/octet-stream', digest: digestOf(layer), size: layer.byteLength }
  return Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MANIFEST_TYPE, config: one, layers: [one] }))
}

function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}
