/** What a tag means when several speak of it: who may, who was last, what is gone; in the open network whose it is. */
import { createHash } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { ImageTags, OCI_TAG_LEASE_MS, ownerName, type SaidManifest } from '../../../agent/catalog/image-tags.ts'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { peerIdOf } from '../../../agent/identity/peer-id.ts'
import { ISSUED_AHEAD_MS_MAX } from '../../../protocols/records/record.ts'
import { clockAt, DAY_MS, makeStore, START_MS, type Store } from './catalog.ts'

const network = new Uint8Array(32).fill(1)

function manifest(text: string, more: Partial<SaidManifest> = {}): SaidManifest {
  const blob = createHash('sha256').update(text).digest()
  return {
    digest: `sha256:${blob.toString('hex')}`,
    blob: Uint8Array.from(blob),
    sizeBytes: 100,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    imageBytes: 1_000,
    platforms: ['linux/amd64'],
    labels: {},
    ...more,
  }
}

/** Nodes of one network, whose records reach each other when `meet` is called. */
class Party implements Disposable {
  readonly clock = clockAt()
  readonly stores: (Store & Disposable)[] = []
  readonly tags: ImageTags[] = []
  /** Who may push, by the first component of a repository; everybody where it is not there. */
  readonly only = new Map<string, Uint8Array>()

  constructor(count: number, { isOpen = false } = {}) {
    for (let nth = 0; nth < count; nth++) {
      const store = makeStore({ clock: this.clock, key: ephemeralNodeKey(), ...(isOpen ? {} : { network }) })
      const mayPush = (publisher: Uint8Array, repository: string) => {
        const only = this.only.get(repository.split('/')[0] ?? '')
        return only === undefined || Buffer.compare(only, publisher) === 0
      }
      this.stores.push(store)
      const { db, records } = store
      this.tags.push(new ImageTags({ db, records, nodes: new Nodes(records), ...(isOpen ? {} : { mayPush }) }))
    }
  }

  meet(): void {
    for (const from of this.stores)
      for (const to of this.stores)
        if (from !== to)
          for (const { id } of from.records.positions(from.records.publisher)) {
            const bytes = from.records.fetch(id)
            if (bytes) to.records.accept(bytes)
          }
  }

  at(nth: number): ImageTags {
    return this.tags[nth] as ImageTags
  }

  key(nth: number): Uint8Array {
    return (this.stores[nth] as Store).key.publicKey
  }

  /** What each says a tag means. */
  means(repository: string, tag: string): (string | undefined)[] {
    return this.tags.map((one) => one.get(repository, tag)?.body.digest)
  }

  [Symbol.dispose](): void {
    for (const store of this.stores) store[Symbol.dispose]()
  }
}

describe('in a closed network', () => {
  it('a tag means what was pushed last, whoever pushed it, and whatever order it is heard in', () => {
    using party = new Party(3)
    const [one, two] = [manifest('one'), manifest('two')]
    party.at(0).move('team/app', '1', one)
    party.meet()
    expect(party.means('team/app', '1')).toEqual([one.digest, one.digest, one.digest])
    // In the same millisecond, and by a clock that is late.
    party.clock.at -= 60_000
    party.at(1).move('team/app', '1', two)
    party.clock.at += 60_000
    party.meet()
    expect(party.means('team/app', '1')).toEqual([two.digest, two.digest, two.digest])
    expect(
      party
        .at(2)
        .history('team/app', '1', 10)
        .map(({ digest }) => digest),
    ).toEqual([two.digest, one.digest])
    expect(
      party
        .at(2)
        .withDigest(one.digest)
        .map(({ peerId }) => peerId),
    ).toEqual([peerIdOf(party.key(0))])
  })

  it('a renewed record of who was overtaken does not bring an old image back', () => {
    using party = new Party(2)
    const [one, two] = [manifest('one'), manifest('two')]
    party.at(0).move('app', '1', one)
    party.meet()
    party.clock.at += 1_000
    party.at(1).move('app', '1', two)
    party.meet()
    party.clock.at += DAY_MS
    const [record] = (party.stores[0] as Store).records.own('oci-tag')
    ;(party.stores[0] as Store).records.put({
      kind: 'oci-tag',
      name: record?.name ?? '',
      body: record?.body,
      leaseMs: OCI_TAG_LEASE_MS,
    })
    party.meet()
    expect(party.means('app', '1')).toEqual([two.digest, two.digest])
  })

  it('a tag that somebody deletes is gone for all, and can be pushed again', () => {
    using party = new Party(2)
    const one = manifest('one')
    party.at(0).move('app', '1', one)
    party.meet()
    expect(party.at(1).remove('app', '1')).toBe(true)
    party.meet()
    expect(party.means('app', '1')).toEqual([undefined, undefined])
    expect(party.at(0).tags('app')).toEqual([])
    expect(party.at(0).remove('app', '1')).toBe(false)
    expect(party.at(0).history('app', '1', 10)[0]).toMatchObject({ digest: undefined, counts: true })
    party.at(0).move('app', '1', one)
    party.meet()
    expect(party.means('app', '1')).toEqual([one.digest, one.digest])
  })

  it('a deletion that nobody contradicts any more is taken back, and so is what it contradicts', () => {
    using party = new Party(2)
    party.at(0).move('app', '1', manifest('one'))
    party.meet()
    party.at(1).remove('app', '1')
    party.meet()
    expect(party.at(1).settle('app', '1')).toBe(false)
    expect(party.at(1).ownDeletions()).toEqual([{ repository: 'app', tag: '1' }])
    expect(party.at(0).settle('app', '1')).toBe(true)
    party.meet()
    expect(party.at(1).settle('app', '1')).toBe(false)
    expect(party.at(1).ownDeletions()).toEqual([])
    party.meet()
    expect(party.means('app', '1')).toEqual([undefined, undefined])
  })

  it('who may not push says nothing that counts, from the moment that the policy says so', () => {
    using party = new Party(3)
    const [one, two] = [manifest('one'), manifest('two')]
    party.only.set('team', party.key(0))
    party.at(0).move('team/app', '1', one)
    party.clock.at += 1_000
    party.at(1).move('team/app', '1', two)
    party.meet()
    expect(party.at(2).get('team/app', '1')?.body.digest).toBe(one.digest)
    expect(
      party
        .at(2)
        .search('team', 10)
        .images.map(({ body }) => body.digest),
    ).toEqual([one.digest])
    party.only.clear()
    expect(party.at(2).get('team/app', '1')?.body.digest).toBe(two.digest)
  })

  it('who says a time from the future has the tag neither for now nor for good', () => {
    using party = new Party(2)
    const [one, two] = [manifest('one'), manifest('two')]
    party.at(0).move('app', '1', one, START_MS + ISSUED_AHEAD_MS_MAX + 1)
    party.at(1).move('app', '1', two)
    party.meet()
    expect(party.means('app', '1')).toEqual([two.digest, two.digest])
    party.clock.at += 2
    expect(party.means('app', '1')).toEqual([one.digest, one.digest])
    party.at(1).move('app', '1', two)
    party.meet()
    expect(party.means('app', '1')).toEqual([two.digest, two.digest])
  })

  it('lists tags in order, finds images by words, and referrers by what they belong to', () => {
    using party = new Party(2)
    const image = manifest('image', { labels: { title: 'Zebra' }, platforms: ['linux/arm64/v8'] })
    for (const tag of ['b', 'a', 'latest']) party.at(0).move('team/app', tag, image)
    party
      .at(0)
      .addReferrer('team/app', manifest('signature', { subject: image.digest, artifactType: 'application/x.sig' }))
    party.meet()
    expect(party.at(1).tags('team/app')).toEqual(['a', 'b', 'latest'])
    expect(party.at(1).has('team/app')).toBe(true)
    expect(party.at(1).has('team')).toBe(false)
    for (const words of ['zebra', 'arm64', 'team', 'latest'])
      expect(party.at(1).search(words, 10).images.length, words).toBeGreaterThan(0)
    expect(party.at(1).search('nothing', 10).images).toEqual([])
    expect(party.at(1).search('', 2)).toMatchObject({ images: { length: 2 }, truncated: true })
    expect(party.at(1).referrers('team/app', image.digest)).toMatchObject([
      { body: { artifactType: 'application/x.sig' } },
    ])
    party.at(0).removeReferrer('team/app', manifest('signature').digest)
    expect(party.at(0).referrers('team/app', image.digest)).toEqual([])
  })
})

describe('in the open network', () => {
  it('a repository is its publisher’s, and without one this node’s own', () => {
    using party = new Party(2, { isOpen: true })
    const [one, two] = [manifest('one'), manifest('two')]
    party.at(0).move('app', '1', one)
    party.at(1).move('app', '1', two)
    party.meet()
    const of = (nth: number) => `${ownerName(party.key(nth))}/app`
    expect(ownerName(party.key(0))).toMatch(/^k51[0-9a-z]{59}$/)
    expect(party.means(of(0), '1')).toEqual([one.digest, one.digest])
    expect(party.means(of(1), '1')).toEqual([two.digest, two.digest])
    expect(party.at(0).callOf('app')).toBe(of(0))
    expect(party.at(0).callOf(of(1))).toBe(of(1))
    expect(party.at(0).placeOfOwn(of(0))).toEqual({ named: of(0), said: 'app' })
  })
})
