/** What is kept of repositories: what tags lead to is pinned, a push that is not done is kept for a day, and the rest may go. */
import { randomBytes } from 'node:crypto'
import { expect, it } from 'vitest'
import { HOME, named, Registry } from './registry.ts'

const MIB = 1024 * 1024
const DAY_MS = 24 * 60 * 60_000
const APP = 'home/app'

it('pins what a tag leads to, through indexes, until the tag is elsewhere', async () => {
  await using registry = await Registry.start()
  const first = await registry.pushImage(APP, undefined)
  const second = await registry.pushImage(APP, undefined)
  const index = await registry.putIndex(APP, 'v1', [first.descriptor, second.descriptor])
  const all = [index.digest, first.digest, first.layer.digest, second.digest, second.layer.digest]
  registry.now += 2 * DAY_MS
  registry.repositories.sweep()
  expect(all.map((digest) => registry.isPinned(digest))).toEqual([true, true, true, true, true])
  // Peers of the network may have it, and nobody else.
  expect([...registry.blobs.networksOf(second.layer.digest.slice(7))]).toEqual([HOME])
  await registry.putManifest(APP, 'v1', JSON.parse(first.bytes.toString()))
  expect(all.map((digest) => registry.isPinned(digest))).toEqual([false, true, true, false, false])
  expect([...registry.blobs.networksOf(second.layer.digest.slice(7))]).toEqual([])
  // It is there until its room is needed.
  expect((await registry.ask('GET', `${APP}/manifests/${second.digest}`)).status).toBe(200)
  await registry.ask('DELETE', `${APP}/manifests/v1`)
  expect(all.map((digest) => registry.isPinned(digest))).toEqual([false, false, false, false, false])
})

it('keeps signatures and what is said of them with what they are about, and no longer', async () => {
  await using registry = await Registry.start()
  const image = await registry.pushImage(APP, 'v1')
  const signature = await registry.pushImage(APP, undefined, { subject: image.descriptor })
  const witness = await registry.pushImage(APP, undefined, { subject: signature.descriptor })
  const all = [image, signature, witness].map(({ layer }) => layer.digest)
  registry.now += 2 * DAY_MS
  registry.repositories.sweep()
  expect(all.map((digest) => registry.isPinned(digest))).toEqual([true, true, true])
  await registry.ask('DELETE', `${APP}/manifests/v1`)
  expect(all.map((digest) => registry.isPinned(digest))).toEqual([false, false, false])
  // The other way round: what was there before its subject.
  const late = await registry.pushImage(APP, undefined, { annotations: { late: 'yes' } })
  await registry.pushImage(APP, undefined, { subject: late.descriptor })
  const early = await registry.pushImage(APP, undefined, { subject: late.descriptor })
  await registry.putManifest(APP, 'late', JSON.parse(late.bytes.toString()))
  registry.now += 2 * DAY_MS
  registry.repositories.sweep()
  expect([late, early].map(({ digest }) => registry.isPinned(digest))).toEqual([true, true])
})

it('keeps what was pushed without a tag for a day, also over a restart', async () => {
  await using registry = await Registry.start()
  const blob = await registry.push(APP, randomBytes(10))
  const image = await registry.pushImage(APP, undefined)
  const all = [blob.digest, image.digest, image.layer.digest]
  registry.now += DAY_MS - 1_000
  await registry.restart()
  expect(all.map((digest) => registry.isPinned(digest))).toEqual([true, true, true])
  registry.now += 2_000
  await registry.restart()
  expect(all.map((digest) => registry.isPinned(digest))).toEqual([false, false, false])
  // Pushed once more, it is kept for a day again.
  const again = await registry.putManifest(APP, 'v1', JSON.parse(image.bytes.toString()))
  expect([again.digest, image.layer.digest].map((digest) => registry.isPinned(digest))).toEqual([true, true])
})

it('gives the room of what no tag leads to, and never that of what one does', async () => {
  await using registry = await Registry.start({ quotaBytes: 4 * MIB })
  const pushes = []
  for (let at = 0; at < 6; at++) {
    const layer = await registry.push(APP, randomBytes(MIB))
    pushes.push({ ...(await registry.pushImage(APP, 'latest', { layers: [layer] })), layer })
    registry.now += 1_000
  }
  const isThere = async (path: string) => (await registry.ask('HEAD', `${APP}/${path}`)).status === 200
  const [first] = pushes
  const last = pushes.at(-1)
  expect(await isThere(`blobs/${first?.layer.digest}`)).toBe(false)
  expect(await isThere(`blobs/${last?.layer.digest}`)).toBe(true)
  expect(await isThere('manifests/latest')).toBe(true)
  // A manifest whose layer is gone cannot be pushed as if it were whole.
  const asked = {
    body: first?.bytes ?? Buffer.alloc(0),
    headers: { 'content-type': String(first?.descriptor.mediaType) },
  }
  expect(await registry.fault('PUT', `${APP}/manifests/first`, asked)).toEqual([404, 'MANIFEST_BLOB_UNKNOWN'])
})

it('keeps in one repository what was deleted in another', async () => {
  await using registry = await Registry.start()
  const bytes = randomBytes(10)
  const layer = await registry.push(APP, bytes)
  await registry.push('other/app', bytes)
  await registry.pushImage(APP, 'v1', { layers: [layer] })
  const image = await registry.pushImage('other/app', 'v1', { layers: [layer] })
  await registry.ask('DELETE', `other/app/manifests/${image.digest}`)
  await registry.ask('DELETE', `other/app/blobs/${layer.digest}`)
  expect(registry.isPinned(layer.digest)).toBe(true)
  expect((await registry.ask('GET', `${APP}/blobs/${layer.digest}`)).status).toBe(200)
})

it('forgets a network that was left, and nothing else', async () => {
  await using registry = await Registry.start()
  const left = await registry.pushImage(APP, 'v1')
  await registry.pushImage(APP, undefined)
  const stays = await registry.pushImage('other/app', 'v1')
  registry.repositories.forgetSpace(HOME)
  expect(await registry.fault('GET', `${APP}/manifests/v1`)).toEqual([404, 'NAME_UNKNOWN'])
  expect(registry.blobs.index.pinReasons('image:')).toHaveLength(1)
  expect(registry.blobs.index.pinReasons('pushed:')).toEqual([])
  expect(registry.blobs.has(left.layer.digest.slice(7))).toBe(false)
  expect(registry.isPinned(stays.layer.digest)).toBe(true)
})

it('takes what was fetched as it comes, and keeps it only for as long as there is room', async () => {
  await using registry = await Registry.start()
  const name = named(APP)
  const { bytes } = await registry.pushImage('other/app', 'v1')
  const { signal } = new AbortController()
  const adopted = await registry.repositories.adoptManifest(name, { bytes, mediaType: undefined, tags: [] }, signal)
  expect((await registry.ask('GET', `${APP}/manifests/${adopted.digest}`)).body.equals(bytes)).toBe(true)
  expect(registry.blobs.index.pins(adopted.digest.slice(7)).filter((pin) => pin.includes(`${HOME}/`))).toEqual([])
})
