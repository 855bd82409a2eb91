/** Uploads on the disk: they go on after a restart, take room, and end by themselves. */
import { randomBytes } from 'node:crypto'
import { readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it, vi } from 'vitest'
import type { RepositoryPath } from '../../../agent/oci/names.ts'
import { digestOf, Registry } from './registry.ts'

const MIB = 1024 * 1024
const HOUR_MS = 60 * 60_000
const DAY_MS = 24 * HOUR_MS

async function begun(registry: Registry, bytes: Uint8Array, query = ''): Promise<string> {
  const { headers } = await registry.ask('POST', `home/uploads/a/blobs/uploads/${query}`)
  const place = String(headers.location)
  const { status } = await registry.ask('PATCH', place, { body: bytes })
  expect(status).toBe(202)
  return place
}

it('go on after a restart, whatever their digest is to be', async () => {
  await using registry = await Registry.start()
  const bytes = randomBytes(3 * MIB)
  for (const algorithm of ['sha256', 'sha512'] as const) {
    const query = algorithm === 'sha512' ? '?digest-algorithm=sha512' : ''
    const place = await begun(registry, bytes.subarray(0, 2 * MIB), query)
    await registry.restart()
    expect(registry.uploads.stats).toEqual({ open: 1, bytes: 2 * MIB })
    expect((await registry.ask('GET', place)).headers.range).toBe(`0-${2 * MIB - 1}`)
    const rest = { body: bytes.subarray(2 * MIB), headers: { 'content-range': `${2 * MIB}-${3 * MIB - 1}` } }
    const digest = digestOf(bytes, algorithm)
    expect((await registry.ask('PUT', `${place}?digest=${digest}`, rest)).status).toBe(201)
    expect((await registry.ask('GET', `home/uploads/a/blobs/${digest}`)).body.equals(bytes)).toBe(true)
    expect(registry.uploads.stats).toEqual({ open: 0, bytes: 0 })
  }
  await registry.restart()
  expect(registry.blobs.excessBytes).toBe(3 * MIB - registry.blobs.stats.quotaBytes)
})

it('say how much of them a kill would leave, while a request sends to one', async () => {
  await using registry = await Registry.start()
  const { headers } = await registry.ask('POST', 'home/uploads/a/blobs/uploads/')
  const place = String(headers.location)
  const { promise: rest, resolve: end } = Promise.withResolvers<void>()
  async function* sent() {
    yield randomBytes(1_000)
    await rest
  }
  const chunk = { bytes: sent(), range: undefined, lengthBytes: undefined }
  const name = { text: 'home/uploads/a', space: 'a'.repeat(64), path: 'uploads/a' as RepositoryPath }
  const sending = registry.uploads.append(name, place.split('/').at(-1) ?? '', chunk, new AbortController().signal)
  await vi.waitUntil(() => registry.uploads.stats.bytes === 1_000)
  // Received, and too little to be written yet.
  expect((await registry.ask('GET', place)).headers.range).toBe('0-0')
  end()
  await sending
  expect((await registry.ask('GET', place)).headers.range).toBe('0-999')
})

it('whose bytes were lost by the disk end with another digest, and are over', async () => {
  await using registry = await Registry.start()
  const bytes = randomBytes(MIB)
  const place = await begun(registry, bytes)
  await registry.restart()
  writeFileSync(join(registry.directory, 'blobs', 'uploads', place.split('/').at(-1) ?? ''), Buffer.alloc(MIB))
  expect(await registry.fault('PUT', `${place}?digest=${digestOf(bytes)}`)).toEqual([400, 'DIGEST_INVALID'])
  expect(registry.uploads.stats).toEqual({ open: 0, bytes: 0 })
})

it('end when nobody touched them for a day, while the agent runs and while it does not', async () => {
  await using registry = await Registry.start()
  const old = await begun(registry, randomBytes(MIB))
  registry.now += DAY_MS - HOUR_MS
  const young = await begun(registry, randomBytes(MIB))
  registry.now += 2 * HOUR_MS
  registry.uploads.sweep()
  expect((await registry.ask('GET', old)).status).toBe(404)
  expect((await registry.ask('GET', young)).status).toBe(204)
  registry.now += DAY_MS
  await registry.restart()
  expect((await registry.ask('GET', young)).status).toBe(404)
  expect(readdirSync(join(registry.directory, 'blobs', 'uploads'))).toEqual([])
  expect(registry.blobs.excessBytes).toBe(-registry.blobs.stats.quotaBytes)
})

it('take room like blobs, and give it when others need it and nobody touched them for an hour', async () => {
  await using registry = await Registry.start({ quotaBytes: 4 * MIB })
  const left = await begun(registry, randomBytes(3 * MIB))
  const bytes = randomBytes(2 * MIB)
  const push = () => registry.ask('POST', `home/uploads/a/blobs/uploads/?digest=${digestOf(bytes)}`, { body: bytes })
  expect((await push()).status).toBe(507)
  expect((await registry.ask('GET', left)).status).toBe(204)
  registry.now += 2 * HOUR_MS
  expect((await push()).status).toBe(201)
  expect((await registry.ask('GET', left)).status).toBe(404)
})

it('end with a clear word when the disk is full, and leave nothing on it', async () => {
  await using registry = await Registry.start()
  const { headers } = await registry.ask('POST', 'home/uploads/a/blobs/uploads/')
  const place = String(headers.location)
  symlinkSync('/dev/full', join(registry.directory, 'blobs', 'uploads', place.split('/').at(-1) ?? ''))
  const { status, body } = await registry.ask('PATCH', place, { body: randomBytes(MIB) })
  expect([status, body.toString()]).toEqual([
    507,
    expect.stringMatching(/DENIED.*the disk of .* is full: .* Free some space/),
  ])
  expect(registry.uploads.stats).toEqual({ open: 0, bytes: 0 })
  expect(registry.blobs.excessBytes).toBe(-registry.blobs.stats.quotaBytes)
})

it('of a network that was left are gone', async () => {
  await using registry = await Registry.start()
  const place = await begun(registry, randomBytes(MIB))
  registry.uploads.forgetSpace('a'.repeat(64))
  expect((await registry.ask('GET', place)).status).toBe(404)
  expect(registry.blobs.excessBytes).toBe(-registry.blobs.stats.quotaBytes)
})

it('of what is here already take no room twice', async () => {
  await using registry = await Registry.start()
  const bytes = randomBytes(MIB)
  for (const name of ['home/uploads/a', 'home/uploads/b', 'other/a']) await registry.push(name, bytes)
  expect(registry.blobs.stats).toMatchObject({ blobs: 1, bytes: MIB })
  expect(registry.blobs.excessBytes).toBe(MIB - registry.blobs.stats.quotaBytes)
})
