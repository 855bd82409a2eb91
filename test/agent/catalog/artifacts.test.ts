/** The view of artifacts: announcing, searching, naming, and which of them may answer for a store path. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { queryOf } from '../../../agent/catalog/artifact-index.ts'
import { ARTIFACT_KIND, ARTIFACT_LEASE_MS, Artifacts } from '../../../agent/catalog/artifacts.ts'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { PathIndex } from '../../../agent/catalog/path-index.ts'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import { type ArtifactBody, fileCid, manifestCid, pathPrefix } from '../../../protocols/artifact/artifact.ts'
import { DAY_MS, MINUTE_MS, makeStore, recordBy, START_MS } from './catalog.ts'

const [alice, bob] = [ephemeralNodeKey(), ephemeralNodeKey()]
const fileBody = (digit: string, description = ''): ArtifactBody => ({
  type: 'file',
  cid: fileCid(digit.repeat(64)),
  sizeBytes: 1,
  description,
})
const hashParts = ['0c4x4m2lmm6ys4ybj6zaq5xxgm3l2hvm', 'sn0nbmqwbdn9bnqbdkjdqf8m1zs2iqp3'] as const
const nixBody = (paths: readonly string[], description = ''): ArtifactBody => ({
  type: 'nix',
  cid: manifestCid(Buffer.from(paths.join())),
  sizeBytes: 5,
  description,
  root: `/nix/store/${paths[0]}-hello`,
  signatures: manifestCid(Buffer.from('signatures')),
  signer: 'k-1:AAAA',
  paths: Buffer.concat(paths.map(pathPrefix).sort((a, b) => Buffer.compare(a, b))),
})

function makeView(welcomes?: (publisher: Uint8Array) => boolean) {
  const store = makeStore()
  const nodes = new Nodes(store.records)
  const artifacts = new Artifacts({ db: store.db, records: store.records, nodes, ...(welcomes && { welcomes }) })
  const names = (words: string, limit = 20) => artifacts.search(words, limit).artifacts.map(({ name }) => name)
  const hear = (key: NodeKey, name: string, body: unknown, seq = 1) =>
    store.records.accept(recordBy(key, { kind: ARTIFACT_KIND, name, body, seq }).bytes)
  const call = (key: NodeKey, name: string, seq = 1) =>
    store.records.accept(
      recordBy(key, {
        kind: 'presence',
        name: 'node',
        seq: 10_000 + seq,
        body: { name, version: '1', capabilities: { system: 'x', cpus: 1, memoryBytes: 1 } },
      }).bytes,
    )
  return { ...store, nodes, artifacts, names, hear, call }
}

describe('this node’s artifacts', () => {
  it('are announced, listed, replaced and withdrawn', () => {
    using view = makeView()
    const announced = view.artifacts.announce('hello', fileBody('1', 'first'))
    expect(announced).toMatchObject({ name: 'hello', isOwn: true, expires: START_MS + ARTIFACT_LEASE_MS })
    view.artifacts.announce('hello', fileBody('2', 'second'))
    expect(view.artifacts.own().map(({ body }) => body.description)).toEqual(['second'])
    expect(view.artifacts.count()).toEqual({ own: 1, known: 1 })
    expect(view.artifacts.withdraw('hello')).toMatchObject([{ name: 'hello', cid: fileBody('2').cid.toString() }])
    expect(view.artifacts.own()).toEqual([])
    expect(view.artifacts.count()).toEqual({ own: 0, known: 0 })
    expect(view.names('hello')).toEqual([])
  })

  it('are withdrawn by CID under all their names, and only this node’s', () => {
    using view = makeView()
    view.artifacts.announce('a', fileBody('1'))
    view.artifacts.announce('b', fileBody('1'))
    view.hear(alice, 'c', fileBody('1'))
    expect(view.artifacts.withdraw(fileBody('1').cid.toString()).map(({ name }) => name)).toEqual(['a', 'b'])
    expect(view.names('')).toEqual(['c'])
    expect(() => view.artifacts.withdraw('c')).toThrow(expect.objectContaining({ code: 'not-found' }))
  })

  it('are withdrawn although this state directory does not know them', () => {
    using view = makeView()
    view.hear(view.key, 'lost', fileBody('1'))
    expect(view.artifacts.own()).toEqual([])
    expect(view.artifacts.withdraw('lost')).toMatchObject([{ name: 'lost', isOwn: true }])
    expect(view.names('')).toEqual([])
  })

  it.each(['', '.hidden', 'a b', 'a/b', 'ü', 'x'.repeat(129), 'a\n'])('cannot be called %j', (name) => {
    using view = makeView()
    expect(() => view.artifacts.announce(name, fileBody('1'))).toThrow(expect.objectContaining({ code: 'usage' }))
  })

  it('cannot be described at too great length', () => {
    using view = makeView()
    expect(() => view.artifacts.announce('a', fileBody('1', 'x'.repeat(1_001)))).toThrow(
      expect.objectContaining({ code: 'usage' }),
    )
  })
})

describe('searching', () => {
  it('finds by name, description, type, peer id and node name, all words, the last one by its beginning', () => {
    using view = makeView()
    view.call(alice, 'attic')
    view.hear(alice, 'hello-2.12.1', nixBody([hashParts[0]], 'A greeting for the world'))
    view.hear(bob, 'readme', fileBody('1', 'What to read first'))
    expect(view.names('hello')).toEqual(['hello-2.12.1'])
    expect(view.names('hel')).toEqual(['hello-2.12.1'])
    expect(view.names('hello-2.12')).toEqual(['hello-2.12.1'])
    expect(view.names('world GREETING')).toEqual(['hello-2.12.1'])
    expect(view.names('nix')).toEqual(['hello-2.12.1'])
    expect(view.names('attic hel')).toEqual(['hello-2.12.1'])
    expect(view.names(bob.peerId)).toEqual(['readme'])
    expect(view.names('hello readme')).toEqual([])
    expect(view.names('')).toHaveLength(2)
  })

  it('puts the exact name first, then names, then descriptions', () => {
    using view = makeView()
    view.hear(alice, 'web', fileBody('1', 'nginx in front of things, and nginx behind them: nginx nginx nginx'), 1)
    view.hear(alice, 'nginx-module', fileBody('2', 'something else'), 2)
    view.hear(alice, 'nginx', fileBody('3', 'a long description of a server that does many things'), 3)
    expect(view.names('nginx')).toEqual(['nginx', 'nginx-module', 'web'])
  })

  it('follows nodes that are renamed', () => {
    using view = makeView()
    view.hear(alice, 'a', fileBody('1'))
    expect(view.names('attic')).toEqual([])
    view.call(alice, 'attic', 1)
    expect(view.names('attic')).toEqual(['a'])
    view.call(alice, 'cellar', 2)
    expect(view.names('attic')).toEqual([])
    expect(view.names('cellar')).toEqual(['a'])
    expect(view.artifacts.search('', 5).artifacts[0]?.nodeName).toBe('cellar')
  })

  it('shows the same content under the same name once, and says when there is more', () => {
    using view = makeView()
    for (const key of [alice, bob, ephemeralNodeKey()]) view.hear(key, 'same', fileBody('1'))
    view.hear(alice, 'other', fileBody('1'), 2)
    view.hear(bob, 'same', fileBody('2'), 2)
    expect(view.names('').sort()).toEqual(['other', 'same', 'same'])
    const { artifacts, truncated } = view.artifacts.search('', 2)
    expect([artifacts.length, truncated]).toEqual([2, true])
    expect(view.artifacts.search('', 3).truncated).toBe(false)
  })

  it('takes anything that is typed as words', () => {
    using view = makeView()
    view.hear(alice, 'hello', fileBody('1', 'say "hi" AND (bye) -x col:y *'))
    for (const typed of [
      '"',
      '"hi"',
      'AND',
      'OR NOT',
      'NEAR(a b)',
      'name:hello',
      '*',
      '(',
      '-hello',
      '\0',
      '^',
      "'; DROP TABLE artifacts",
    ])
      expect(() => view.artifacts.search(typed, 5)).not.toThrow()
    expect(view.names('"hi" (bye)')).toEqual(['hello'])
    expect(view.names('***')).toEqual([])
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), (typed) => void view.artifacts.search(typed, 5)),
      { numRuns: 40 },
    )
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (typed) => void view.artifacts.search(typed, 5)),
      { numRuns: 40 },
    )
    expect(queryOf('x'.repeat(100_000)).length).toBeLessThan(1_000)
    expect(view.names('hello')).toEqual(['hello'])
  })

  it('forgets what expired, was taken back, or was crowded out', () => {
    using view = makeView()
    view.hear(alice, 'a', fileBody('1'), 1)
    view.hear(alice, 'b', fileBody('2'), 2)
    view.records.accept(recordBy(alice, { kind: ARTIFACT_KIND, name: 'a', seq: 3, deleted: true }).bytes)
    expect(view.names('')).toEqual(['b'])
    view.clock.at += DAY_MS
    expect(view.names('')).toEqual([])
    view.records.sweep()
    expect(view.db.prepare('SELECT count(*) AS n FROM artifacts').get()).toEqual({ n: 0 })
    expect(view.db.prepare('SELECT count(*) AS n FROM artifact_words').get()).toEqual({ n: 0 })
  })

  it('keeps records of artifacts that it does not understand, and does not show them', () => {
    using view = makeView()
    for (const [nth, body] of [null, { type: 'hologram' }, { ...fileBody('1'), sizeBytes: -1 }].entries())
      expect(view.hear(alice, `a${nth}`, body, nth)).toBe('new')
    expect(view.hear(alice, '~!', fileBody('1'), 9)).toBe('new')
    expect(view.records.counts().records).toBe(4)
    expect(view.names('')).toEqual([])
    view.hear(alice, 'b', fileBody('1'), 10)
    view.hear(alice, 'b', { type: 'hologram' }, 11)
    expect(view.names('')).toEqual([])
  })
})

describe('naming an artifact', () => {
  it('works by CID, by name, and by publisher and name', () => {
    using view = makeView()
    view.call(alice, 'attic')
    view.hear(alice, 'hello', fileBody('1'))
    const { cid } = fileBody('1')
    for (const ref of [cid.toString(), 'hello', `${alice.peerId}/hello`, 'attic/hello'])
      expect(view.artifacts.resolve(ref)).toMatchObject({ name: 'hello', peerId: alice.peerId })
    for (const ref of ['hell', 'cellar/hello', fileBody('2').cid.toString(), '', '/', '../hello'])
      expect(() => view.artifacts.resolve(ref)).toThrow(expect.objectContaining({ code: 'not-found' }))
  })

  it('asks back when a name means several contents, and not when they are the same', () => {
    using view = makeView()
    view.hear(alice, 'hello', fileBody('1'))
    view.hear(bob, 'hello', fileBody('1'))
    expect(view.artifacts.resolve('hello').name).toBe('hello')
    expect(view.artifacts.holders(fileBody('1').cid.toString()).sort()).toEqual([alice.peerId, bob.peerId].sort())
    view.hear(bob, 'hello', fileBody('2'), 2)
    expect(() => view.artifacts.resolve('hello')).toThrow(expect.objectContaining({ code: 'usage' }))
    expect(() => view.artifacts.resolve('hello')).toThrow(bob.peerId)
    expect(view.artifacts.resolve(`${bob.peerId}/hello`).cid).toBe(fileBody('2').cid.toString())
  })

  it('prefers this node’s own among equals', () => {
    using view = makeView()
    view.artifacts.announce('hello', fileBody('1'))
    view.clock.at += MINUTE_MS
    view.hear(alice, 'hello', fileBody('1'))
    expect(view.artifacts.resolve('hello').isOwn).toBe(true)
  })
})

describe('artifacts of somebody who may not publish', () => {
  const cid = fileBody('1').cid.toString()

  it('are found in no way, and all the rest as if they were not there', () => {
    const out = new Set<string>()
    using view = makeView((publisher) => !out.has(Buffer.from(publisher).toString('hex')))
    view.hear(alice, 'same', fileBody('1'))
    view.hear(bob, 'same', fileBody('1'), 2)
    view.hear(bob, 'other', fileBody('2'), 3)
    view.hear(bob, 'closure', nixBody(hashParts), 4)
    const seen = () => [
      view.artifacts.search('', 2).truncated,
      view.names('same').length,
      view.artifacts.holders(cid).length,
      view.artifacts.candidates(hashParts[0]).length,
      view.artifacts.count().known,
    ]
    expect(seen()).toEqual([true, 1, 2, 1, 4])
    out.add(Buffer.from(bob.publicKey).toString('hex'))
    expect(seen()).toEqual([false, 1, 1, 0, 1])
    expect(view.artifacts.resolve('same').peerId).toBe(alice.peerId)
    expect(() => view.artifacts.resolve('other')).toThrow(expect.objectContaining({ code: 'not-found' }))
    out.clear()
    expect(seen()).toEqual([true, 1, 2, 1, 4])
  })

  it('are found when it is this node', () => {
    using view = makeView(() => false)
    view.artifacts.announce('mine', fileBody('1'))
    expect(view.names('')).toEqual(['mine'])
    expect(view.artifacts.count()).toEqual({ own: 1, known: 1 })
  })

  it('cost one question a publisher and query', () => {
    let asked = 0
    using view = makeView(() => ++asked > 0)
    for (let nth = 0; nth < 50; nth++) view.hear(alice, `n${nth}`, fileBody('1'), nth)
    view.names('')
    expect(asked).toBe(1)
  })
})

describe('candidates for a store path', () => {
  it('are the Nix artifacts that list it, as long as they are there', () => {
    using view = makeView()
    expect(view.artifacts.candidates(hashParts[0])).toEqual([])
    view.hear(alice, 'both', nixBody(hashParts), 1)
    view.hear(bob, 'one', nixBody([hashParts[1]]), 1)
    const who = (hashPart: string) => view.artifacts.candidates(hashPart).map(({ name }) => name)
    expect(who(hashParts[0])).toEqual(['both'])
    expect(who(hashParts[1]).sort()).toEqual(['both', 'one'])
    expect(who('z'.repeat(32))).toEqual([])
    view.hear(alice, 'both', nixBody([hashParts[0]]), 2)
    expect(who(hashParts[1])).toEqual(['one'])
    const again = new Artifacts({ db: view.db, records: view.records, nodes: view.nodes })
    expect(again.candidates(hashParts[1])).toMatchObject([{ peerId: bob.peerId, name: 'one' }])
    view.clock.at += DAY_MS
    expect(who(hashParts[0])).toEqual([])
    expect(again.candidates(hashParts[0])).toEqual([])
  })
})

describe('the index of path prefixes', () => {
  const prefix = fc.uint8Array({ minLength: 6, maxLength: 6 })
  const lists = fc.array(fc.array(prefix, { maxLength: 30 }), { maxLength: 10 })

  it('finds exactly what is listed, through replacing and deleting', () => {
    fc.assert(
      fc.property(lists, lists, fc.array(prefix, { maxLength: 10 }), (first, second, others) => {
        const index = new PathIndex<number>()
        const sorted = (list: Uint8Array[]) => Buffer.concat(list.toSorted((a, b) => Buffer.compare(a, b)))
        for (const [nth, list] of first.entries()) index.set(String(nth), nth, sorted(list))
        for (const nth of first.keys()) if (nth % 3 === 0) index.delete(String(nth))
        for (const [nth, list] of second.entries()) index.set(String(nth), nth, sorted(list))
        const held = first
          .map((list, nth) => second[nth] ?? (nth % 3 === 0 ? [] : list))
          .concat(second.slice(first.length))
        for (const wanted of [...first.flat(), ...second.flat(), ...others]) {
          const has = held.flatMap((list, nth) => (list.some((one) => Buffer.compare(one, wanted) === 0) ? [nth] : []))
          expect(index.find(wanted).sort((a, b) => a - b)).toEqual(has)
        }
      }),
    )
  })

  it('answers within microseconds for what nobody has', () => {
    const index = new PathIndex<number>()
    for (let nth = 0; nth < 100; nth++) {
      const list = Array.from({ length: 500 }, () => crypto.getRandomValues(new Uint8Array(6)))
      index.set(String(nth), nth, Buffer.concat(list.sort((a, b) => Buffer.compare(a, b))))
    }
    const asked = Array.from({ length: 10_000 }, () => crypto.getRandomValues(new Uint8Array(6)))
    const started = performance.now()
    for (const wanted of asked) index.find(wanted)
    expect((performance.now() - started) / asked.length).toBeLessThan(0.05)
  })
})
