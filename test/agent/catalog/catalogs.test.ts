/** The artifacts of several networks as one. */
import { describe, expect, it } from 'vitest'
import { ARTIFACT_KIND, Artifacts } from '../../../agent/catalog/artifacts.ts'
import { Catalogs } from '../../../agent/catalog/catalogs.ts'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import { type ArtifactBody, fileCid, manifestCid, pathPrefix } from '../../../protocols/artifact/artifact.ts'
import { OPEN_NETWORK } from '../../../protocols/records/record.ts'
import { makeStore, recordBy } from './catalog.ts'

const [me, alice] = [ephemeralNodeKey(), ephemeralNodeKey()]
const body = (digit: string): ArtifactBody => ({
  type: 'file',
  cid: fileCid(digit.repeat(64)),
  sizeBytes: 1,
  description: '',
})
const hashPart = '0c4x4m2lmm6ys4ybj6zaq5xxgm3l2hvm'
const closure: ArtifactBody = {
  type: 'nix',
  cid: manifestCid(Buffer.from('manifest')),
  sizeBytes: 5,
  description: '',
  root: `/nix/store/${hashPart}-hello`,
  signatures: manifestCid(Buffer.from('signatures')),
  signer: 'k-1:AAAA',
  paths: Uint8Array.from(pathPrefix(hashPart)),
}

/** Two networks of one node: the open one, and a closed one called home. */
function makeCatalogs() {
  const made = [OPEN_NETWORK, new Uint8Array(32).fill(7) as Uint8Array].map((network) => {
    const store = makeStore({ network, key: me })
    const artifacts = new Artifacts({ db: store.db, records: store.records, nodes: new Nodes(store.records) })
    let seq = 0
    const hear = (name: string, what: ArtifactBody, key: NodeKey = alice) =>
      store.records.accept(recordBy(key, { network, kind: ARTIFACT_KIND, name, body: what, seq: ++seq }).bytes)
    return { ...store, artifacts, hear, network: Buffer.from(network).toString('hex') }
  })
  const [open, home] = made as [(typeof made)[0], (typeof made)[0]]
  const catalogs = new Catalogs()
  catalogs.add('open', open.artifacts)
  catalogs.add('home', home.artifacts)
  const found = (words: string, network?: string, limit = 20) =>
    catalogs
      .search(words, limit, network)
      .artifacts.map((one) => `${one.name} ${one.network === open.network ? 'open' : 'home'}`)
  const dispose = () => {
    for (const one of made) one[Symbol.dispose]()
  }
  return { open, home, catalogs, found, [Symbol.dispose]: dispose }
}

describe('several networks', () => {
  it('are searched together, best first, or one by itself', () => {
    using all = makeCatalogs()
    for (const name of ['web-a', 'web-b', 'web-c']) all.open.hear(name, body('1'))
    all.home.hear('web', body('2'))
    all.home.hear('web-d', body('3'))
    expect(all.found('web')[0]).toBe('web home')
    expect(all.found('web')).toHaveLength(5)
    expect(all.found('web', all.home.network)).toEqual(['web home', 'web-d home'])
    expect(all.found('web', undefined, 3)).toHaveLength(3)
    expect(all.catalogs.search('web', 3).truncated).toBe(true)
    expect(all.catalogs.search('web', 5).truncated).toBe(false)
    expect(() => all.catalogs.search('web', 5, 'ff')).toThrow(expect.objectContaining({ code: 'not-found' }))
  })

  it('list the same content under the same name once each', () => {
    using all = makeCatalogs()
    all.open.hear('hello', body('1'))
    all.home.hear('hello', body('1'))
    expect(all.found('hello').sort()).toEqual(['hello home', 'hello open'])
    expect(all.catalogs.count()).toEqual({ own: 0, known: 2 })
  })

  it('show what is newest when nothing is typed', () => {
    using all = makeCatalogs()
    all.open.artifacts.announce('first', body('1'))
    all.home.clock.at += 1_000
    all.home.artifacts.announce('second', body('2'))
    all.open.clock.at += 2_000
    all.open.artifacts.announce('third', body('3'))
    expect(all.found('')).toEqual(['third open', 'second home', 'first open'])
    expect(all.catalogs.own().map(({ name }) => name)).toEqual(['first', 'third', 'second'])
    expect(all.catalogs.own(all.home.network).map(({ name }) => name)).toEqual(['second'])
  })

  it('mean different things by a name only when the content differs', () => {
    using all = makeCatalogs()
    all.open.hear('hello', body('1'))
    all.home.hear('hello', body('1'))
    expect(all.catalogs.resolve('hello').network).toBe(all.home.network)
    expect(all.catalogs.resolve('hello', all.open.network).network).toBe(all.open.network)
    expect(all.catalogs.holders(body('1').cid.toString())).toEqual([alice.peerId])
    all.home.hear('hello', body('2'))
    const usage = expect.objectContaining({ code: 'usage', next: expect.stringContaining('--network') })
    expect(() => all.catalogs.resolve('hello')).toThrow(usage)
    expect(() => all.catalogs.resolve('hello')).toThrow(/in home.*in open/)
    expect(all.catalogs.resolve('hello', all.home.network).cid).toBe(body('2').cid.toString())
    expect(() => all.catalogs.resolve('nothing')).toThrow(expect.objectContaining({ code: 'not-found' }))
  })

  it('prefer what this node shares itself', () => {
    using all = makeCatalogs()
    all.open.artifacts.announce('hello', body('1'))
    all.home.hear('hello', body('1'))
    expect(all.catalogs.resolve('hello')).toMatchObject({ isOwn: true, network: all.open.network })
  })

  it('each tell who may have a store path', () => {
    using all = makeCatalogs()
    all.open.hear('closure', closure)
    all.home.hear('closure', closure, ephemeralNodeKey())
    expect(all.catalogs.candidates(hashPart).map(({ network }) => network)).toEqual([
      all.home.network,
      all.open.network,
    ])
    expect(all.catalogs.holders(closure.cid.toString())).toHaveLength(2)
    expect(all.catalogs.holders(closure.cid.toString(), all.open.network)).toEqual([alice.peerId])
  })

  it('come and go', () => {
    using all = makeCatalogs()
    all.home.hear('hello', body('1'))
    all.catalogs.remove(all.home.network)
    expect(all.found('hello')).toEqual([])
    expect(() => all.catalogs.resolve('hello', all.home.network)).toThrow(
      expect.objectContaining({ code: 'not-found' }),
    )
    all.catalogs.add('home', all.home.artifacts)
    expect(all.found('hello')).toEqual(['hello home'])
  })
})
