-- The state database as the agent of commit 19a35d4 left it, written out as SQL: a node named elder that published a file (letter), a folder
-- (bundle) and a store path (closure), fetched a file of another node (parcel), and trusts a key. Read by first-days.ts.
CREATE TABLE schema_versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT;
INSERT INTO schema_versions (part,version) VALUES ('catalog', 1);
INSERT INTO schema_versions (part,version) VALUES ('artifacts', 1);
INSERT INTO schema_versions (part,version) VALUES ('piece-lists', 1);
INSERT INTO schema_versions (part,version) VALUES ('content', 1);
INSERT INTO schema_versions (part,version) VALUES ('nix', 2);
INSERT INTO schema_versions (part,version) VALUES ('trust', 1);
INSERT INTO schema_versions (part,version) VALUES ('peers', 1);
CREATE TABLE records (
      publisher BLOB NOT NULL,
      kind TEXT NOT NULL,
      name TEXT NOT NULL,
      seq INTEGER NOT NULL,
      id BLOB NOT NULL UNIQUE,
      expires INTEGER NOT NULL,
      deleted INTEGER NOT NULL,
      -- made by this state directory, not merely signed with its key
      mine INTEGER NOT NULL,
      size INTEGER NOT NULL,
      bytes BLOB NOT NULL,
      UNIQUE (publisher, kind, name)
    ) STRICT;
INSERT INTO records (publisher,kind,name,seq,id,expires,deleted,mine,size,bytes) VALUES (X'11ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e', 'artifact', 'letter', 1795395132137, X'54d18f81d615f724f9e4503c7abf5b84971eedd8238e9c384b234967124a5c8a', 1797987132137, 0, 1, 312, X'3143340863e604de60ce98bea7b790a49b80a119166730665174b26b8733290f447627d25b725e2ce56f9054b442505f486f5c5a56e543ae6b6fd8657d98020ca9617601637365711b000001a205e39ae964626f6479a463636964d82a58250001551220973dd703670602034aa5409c3e6071e9acea4dc7ce26e96146a237060f78e52d64747970656466696c656973697a654279746573181a6b6465736372697074696f6e60646b696e64686172746966616374646e616d65666c6574746572666973737565641b000001a205e39ae967657870697265731b000001a2a06262e9676e6574776f726b582081c509a2ba0e4b076231deee6f88253907603a7206d67eb9fb20cddca9e1dd04697075626c6973686572582011ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e');
INSERT INTO records (publisher,kind,name,seq,id,expires,deleted,mine,size,bytes) VALUES (X'11ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e', 'artifact', 'bundle', 1795395133112, X'587ff7a10ce61bbe8a4880eb7edae321411dc9bc0788d96478eb90a6efd8f867', 1797987133112, 0, 1, 315, X'2eab98434e2a2a1628b0768865cc3498196f8e2d3ef5a54827a947d31fb18ebeb03c45c3d6d9efc773de980f487b0c8328f8c707cca0c3d116b5eac412ec4d06a9617601637365711b000001a205e39eb864626f6479a463636964d82a582500017112203906c0feb9e8a3213d726186529c4366f7fe69fe2ba309372ecd09b9ab21f2b8647479706566666f6c6465726973697a6542797465731901286b6465736372697074696f6e60646b696e64686172746966616374646e616d656662756e646c65666973737565641b000001a205e39eb867657870697265731b000001a2a06266b8676e6574776f726b582081c509a2ba0e4b076231deee6f88253907603a7206d67eb9fb20cddca9e1dd04697075626c6973686572582011ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e');
INSERT INTO records (publisher,kind,name,seq,id,expires,deleted,mine,size,bytes) VALUES (X'cc664df7223c1c0d3c9be7442f4d1aee82ef9c855ae4dbb0c4b3ed1b4ef50b53', 'artifact', 'parcel', 1795395133920, X'e7409d72d6ae754f1788b6994edc18779b5fe73292ba0c8427f9a8fc009d5ee8', 1797987133920, 0, 0, 311, X'c8b9a46f54c5a36c7b4d667b7f3ef834e658ba01ed9224edf953ba7828bd69caadca2621a70b2e8ceb5aba006f850d031f68ec012948a3e513f7e8eb586cd30fa9617601637365711b000001a205e3a1e064626f6479a463636964d82a582500015512209d69c6f9ef3d371c5d9ad50249ec7ac9ddd174874ba77a6996cc5ca7f19150cc64747970656466696c656973697a654279746573156b6465736372697074696f6e60646b696e64686172746966616374646e616d656670617263656c666973737565641b000001a205e3a1e067657870697265731b000001a2a06269e0676e6574776f726b582081c509a2ba0e4b076231deee6f88253907603a7206d67eb9fb20cddca9e1dd04697075626c69736865725820cc664df7223c1c0d3c9be7442f4d1aee82ef9c855ae4dbb0c4b3ed1b4ef50b53');
INSERT INTO records (publisher,kind,name,seq,id,expires,deleted,mine,size,bytes) VALUES (X'11ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e', 'artifact', 'closure', 1795395138724, X'b5fdc48eb011fc6a4342037781f47dbe6794b17fd2ec8ea1fe10264ad22d5757', 1797987138724, 0, 1, 522, X'fd209a986942d715aa09af76f356febaead1131ba275728160216d04bbd64d5a09bac32711cc7a7ac525244e40f37c22c9842baefd7470e69771d6804e503c03a9617601637365711b000001a205e3b4a464626f6479a863636964d82a58250001711220cb93d21c713e0ff3a5fde64ed1d54987026958662654d2f788ab92b61387279064726f6f74783d2f6e69782f73746f72652f35726870356a646d6c6d7239643061766778693135666a31723363667a3972682d636172652d6f6c642d66696c652e7478746474797065636e6978657061746873462e6172c9b5a5667369676e65727844656c6465722d756e6465726e65742d31616d68336163683a53566b73586161545851667157654b6270327855494f2b42396d63644e597775344443574c7072504f70493d6973697a65427974657318906a7369676e617475726573d82a58250001711220e44b1ab315e7cbcb0e66d076d38c8f55e229825d880b54b8ff57c2dc3139c0276b6465736372697074696f6e60646b696e64686172746966616374646e616d6567636c6f73757265666973737565641b000001a205e3b4a467657870697265731b000001a2a0627ca4676e6574776f726b582081c509a2ba0e4b076231deee6f88253907603a7206d67eb9fb20cddca9e1dd04697075626c6973686572582011ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e');
CREATE TABLE record_proofs (publisher BLOB PRIMARY KEY, one BLOB NOT NULL, other BLOB NOT NULL) STRICT;
CREATE TABLE record_counters (publisher BLOB PRIMARY KEY, seq INTEGER NOT NULL) STRICT;
INSERT INTO record_counters (publisher,seq) VALUES (X'11ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e', 1795395138724);
CREATE TABLE artifacts (
     artifact INTEGER PRIMARY KEY,
     publisher BLOB NOT NULL,
     name TEXT NOT NULL,
     cid TEXT NOT NULL,
     type TEXT NOT NULL,
     issued INTEGER NOT NULL,
     expires INTEGER NOT NULL,
     UNIQUE (publisher, name)
   ) STRICT;
INSERT INTO artifacts (artifact,publisher,name,cid,type,issued,expires) VALUES (1, X'11ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e', 'letter', 'bafkreiexhxlqgzygaibuvjkatq7ga4pjvtve3r6oe3uwcrvcg4da66hffu', 'file', 1795395132137, 1797987132137);
INSERT INTO artifacts (artifact,publisher,name,cid,type,issued,expires) VALUES (2, X'11ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e', 'bundle', 'bafyreibza3ap5opiumqt24tbqzjjyq3g677gt7rlumetolwnbg42wipsxa', 'folder', 1795395133112, 1797987133112);
INSERT INTO artifacts (artifact,publisher,name,cid,type,issued,expires) VALUES (3, X'cc664df7223c1c0d3c9be7442f4d1aee82ef9c855ae4dbb0c4b3ed1b4ef50b53', 'parcel', 'bafkreie5nhdpt3z5g4of3gwvaje6y6wj3xixjb2lu55gtfwmlst7dekqzq', 'file', 1795395133920, 1797987133920);
INSERT INTO artifacts (artifact,publisher,name,cid,type,issued,expires) VALUES (4, X'11ef2b2d828617ec0980c08b24b617b5db051e8ddcf9a3905711076800ed1a0e', 'closure', 'bafyreiglspjby4j6b7z2l7pgj3i5ksmhajuvqzrgktjppcflsk3bhbzhsa', 'nix', 1795395138724, 1797987138724);
CREATE VIRTUAL TABLE artifact_words USING fts5 (
     name, description, type, publisher, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
   );
INSERT INTO artifact_words (rowid,name,description,type,publisher) VALUES (1, 'letter', '', 'file', '12D3KooWB2Nd1V7nGqPcgqaPCiNF49PJpLwFkkDde3yzEXxbJRGZ elder');
INSERT INTO artifact_words (rowid,name,description,type,publisher) VALUES (2, 'bundle', '', 'folder', '12D3KooWB2Nd1V7nGqPcgqaPCiNF49PJpLwFkkDde3yzEXxbJRGZ elder');
INSERT INTO artifact_words (rowid,name,description,type,publisher) VALUES (3, 'parcel', '', 'file', '12D3KooWPaFpPPouzGtiUgBpzfS3f5bMpVNNXQV2JKyqcxFkE9Vc other');
INSERT INTO artifact_words (rowid,name,description,type,publisher) VALUES (4, 'closure', '', 'nix', '12D3KooWB2Nd1V7nGqPcgqaPCiNF49PJpLwFkkDde3yzEXxbJRGZ elder');
CREATE TABLE piece_lists (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, list_bytes INTEGER NOT NULL, hashes BLOB NOT NULL
  ) STRICT;
CREATE TABLE content_blobs (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, used_ms INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
INSERT INTO content_blobs (digest,size_bytes,used_ms) VALUES ('3906c0feb9e8a3213d726186529c4366f7fe69fe2ba309372ecd09b9ab21f2b8', 67, 1795395133111);
INSERT INTO content_blobs (digest,size_bytes,used_ms) VALUES ('973dd703670602034aa5409c3e6071e9acea4dc7ce26e96146a237060f78e52d', 26, 1795395132135);
INSERT INTO content_blobs (digest,size_bytes,used_ms) VALUES ('9d69c6f9ef3d371c5d9ad50249ec7ac9ddd174874ba77a6996cc5ca7f19150cc', 21, 1795395138394);
INSERT INTO content_blobs (digest,size_bytes,used_ms) VALUES ('cb93d21c713e0ff3a5fde64ed1d54987026958662654d2f788ab92b613872790', 233, 1795395138721);
INSERT INTO content_blobs (digest,size_bytes,used_ms) VALUES ('e44b1ab315e7cbcb0e66d076d38c8f55e229825d880b54b8ff57c2dc3139c027', 147, 1795395138722);
INSERT INTO content_blobs (digest,size_bytes,used_ms) VALUES ('fcb33eacf50944da6166c24137ee8d7edec8d538331f78ce135078126cfa4ef4', 296, 1795395133104);
CREATE TABLE content_pins (
    digest TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (digest, reason)
  ) STRICT, WITHOUT ROWID;
INSERT INTO content_pins (digest,reason) VALUES ('3906c0feb9e8a3213d726186529c4366f7fe69fe2ba309372ecd09b9ab21f2b8', 'artifact:bundle');
INSERT INTO content_pins (digest,reason) VALUES ('973dd703670602034aa5409c3e6071e9acea4dc7ce26e96146a237060f78e52d', 'artifact:letter');
INSERT INTO content_pins (digest,reason) VALUES ('cb93d21c713e0ff3a5fde64ed1d54987026958662654d2f788ab92b613872790', 'artifact:closure');
INSERT INTO content_pins (digest,reason) VALUES ('e44b1ab315e7cbcb0e66d076d38c8f55e229825d880b54b8ff57c2dc3139c027', 'artifact:closure');
INSERT INTO content_pins (digest,reason) VALUES ('fcb33eacf50944da6166c24137ee8d7edec8d538331f78ce135078126cfa4ef4', 'artifact:bundle');
CREATE TABLE content_partials (
    digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, used_ms INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
CREATE TABLE nix_published (
     artifact TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL, is_root INTEGER NOT NULL DEFAULT 0,
     PRIMARY KEY (artifact, path)
   ) STRICT;
INSERT INTO nix_published (artifact,path,digest,size_bytes,is_root) VALUES ('closure', '/nix/store/5rhp5jdmlmr9d0avgxi15fj1r3cfz9rh-care-old-file.txt', '3815b4c4d0d7689fa4434e73720325b1ed34242318bd3d4e81cce795702b211e', 144, 1);
CREATE TABLE trusted_keys (key TEXT PRIMARY KEY, added INTEGER NOT NULL) STRICT;
INSERT INTO trusted_keys (key,added) VALUES ('friend-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=', 1795395139297);
CREATE TABLE known_peers (
     peer_id TEXT PRIMARY KEY,
     addresses TEXT NOT NULL,
     connected_ms INTEGER NOT NULL
   ) STRICT;
INSERT INTO known_peers (peer_id,addresses,connected_ms) VALUES ('12D3KooWPaFpPPouzGtiUgBpzfS3f5bMpVNNXQV2JKyqcxFkE9Vc', '["/ip4/127.0.0.1/tcp/33777"]', 1795395131349);
CREATE INDEX records_by_rank ON records (publisher, seq, id, size, expires);
CREATE INDEX records_by_expiry ON records (expires);
CREATE INDEX records_by_kind ON records (kind);
CREATE INDEX artifacts_by_name ON artifacts (name);
CREATE INDEX artifacts_by_cid ON artifacts (cid);
CREATE INDEX content_blobs_used ON content_blobs (used_ms);
CREATE INDEX nix_published_path ON nix_published (path);
CREATE INDEX nix_published_digest ON nix_published (digest);
CREATE INDEX known_peers_by_time ON known_peers (connected_ms);
