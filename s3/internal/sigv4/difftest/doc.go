// Package difftest checks packages sigv4 and chunked against foreign signers: those of aws-sdk-go-v2 and of minio-go. It is a
// module of its own so that Coffer does not depend on them. It holds tests only.
package difftest
