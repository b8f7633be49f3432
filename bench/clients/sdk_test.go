package clients

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/minio-go/v7"
	miniocreds "github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"
)

// partBytes is the part size of the Go clients' multipart uploads.
const partBytes = 16 << 20

// newSDK is an aws-sdk-go-v2 client with the defaults that config.LoadDefaultConfig gives it, but for what an endpoint that is not AWS
// needs. It does not use package config, so that nothing of the machine's own configuration comes in.
func newSDK(s *server, opts ...func(*s3.Options)) *s3.Client {
	return s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(s.endpoint()), UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(s.access, s.secret, ""),
		HTTPClient:                 &http.Client{Transport: s.transport()},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
	}, opts...)
}

// sdkObjects calls visit for each object of a bucket, page by page.
func sdkObjects(ctx context.Context, c *s3.Client, bucket string, visit func(types.Object) error) error {
	p := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: &bucket})
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, o := range page.Contents {
			if err := visit(o); err != nil {
				return err
			}
		}
	}
	return nil
}

type awsSDK struct{}

func (awsSDK) absent() string { return "" }

func (awsSDK) manager(s *server) *transfermanager.Client {
	return transfermanager.New(newSDK(s), func(o *transfermanager.Options) { o.PartSizeBytes = partBytes })
}

func (awsSDK) makeBucket(ctx context.Context, s *server, bucket string) error {
	_, err := newSDK(s).CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket})
	if _, ok := errors.AsType[*types.BucketAlreadyOwnedByYou](err); ok {
		return nil
	}
	return err
}

func (a awsSDK) up(ctx context.Context, s *server, bucket, dir string) error {
	if err := a.makeBucket(ctx, s, bucket); err != nil {
		return err
	}
	_, err := a.manager(s).UploadDirectory(ctx, &transfermanager.UploadDirectoryInput{
		Bucket: &bucket, Source: &dir, Recursive: aws.Bool(true), KeyPrefix: aws.String(treePrefix)})
	return err
}

func (a awsSDK) down(ctx context.Context, s *server, bucket, dir string) error {
	_, err := a.manager(s).DownloadDirectory(ctx, &transfermanager.DownloadDirectoryInput{
		Bucket: &bucket, Destination: &dir, KeyPrefix: aws.String(treePrefix)})
	return err
}

func (a awsSDK) put(ctx context.Context, s *server, bucket, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = a.manager(s).UploadObject(ctx, &transfermanager.UploadObjectInput{Bucket: &bucket, Key: aws.String(largeKey), Body: f})
	return err
}

func (a awsSDK) get(ctx context.Context, s *server, bucket, file string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = a.manager(s).DownloadObject(ctx, &transfermanager.DownloadObjectInput{Bucket: &bucket, Key: aws.String(largeKey), WriterAt: f})
	return err
}

func (awsSDK) remove(ctx context.Context, s *server, bucket string) error {
	c := newSDK(s)
	var all []types.ObjectIdentifier
	if err := sdkObjects(ctx, c, bucket, func(o types.Object) error {
		all = append(all, types.ObjectIdentifier{Key: o.Key})
		return nil
	}); err != nil {
		return err
	}
	for len(all) > 0 {
		n := min(len(all), 1000)
		out, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: all[:n], Quiet: aws.Bool(true)}})
		if err != nil {
			return err
		}
		if len(out.Errors) > 0 {
			return errors.New(aws.ToString(out.Errors[0].Message))
		}
		all = all[n:]
	}
	_, err := c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket})
	return err
}

type minioGo struct{}

func (minioGo) absent() string { return "" }

func newMinio(s *server) (*minio.Client, error) {
	return minio.New(s.https, &minio.Options{Creds: miniocreds.NewStaticV4(s.access, s.secret, ""), Secure: true,
		Transport: s.transport(), Region: "us-east-1", TrailingHeaders: true, MaxRetries: 1})
}

func (minioGo) up(ctx context.Context, s *server, bucket, dir string) error {
	c, err := newMinio(s)
	if err != nil {
		return err
	}
	if err := c.MakeBucket(ctx, bucket, minio.MakeBucketOptions{}); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		g.Go(func() error {
			_, err := c.FPutObject(ctx, bucket, treePrefix+rel, path, minio.PutObjectOptions{})
			return err
		})
		return err
	})
	return errors.Join(err, g.Wait())
}

func (minioGo) down(ctx context.Context, s *server, bucket, dir string) error {
	c, err := newMinio(s)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for o := range c.ListObjects(ctx, bucket, minio.ListObjectsOptions{Prefix: treePrefix, Recursive: true}) {
		g.Go(func() error {
			if o.Err != nil {
				return o.Err
			}
			return c.FGetObject(ctx, bucket, o.Key, filepath.Join(dir, o.Key[len(treePrefix):]), minio.GetObjectOptions{})
		})
	}
	return g.Wait()
}

func (minioGo) put(ctx context.Context, s *server, bucket, file string) error {
	c, err := newMinio(s)
	if err != nil {
		return err
	}
	_, err = c.FPutObject(ctx, bucket, largeKey, file, minio.PutObjectOptions{PartSize: partBytes})
	return err
}

func (minioGo) get(ctx context.Context, s *server, bucket, file string) error {
	c, err := newMinio(s)
	if err != nil {
		return err
	}
	return c.FGetObject(ctx, bucket, largeKey, file, minio.GetObjectOptions{})
}

func (minioGo) remove(ctx context.Context, s *server, bucket string) error {
	c, err := newMinio(s)
	if err != nil {
		return err
	}
	for e := range c.RemoveObjects(ctx, bucket, c.ListObjects(ctx, bucket, minio.ListObjectsOptions{Recursive: true}), minio.RemoveObjectsOptions{}) {
		err = errors.Join(err, e.Err)
	}
	return errors.Join(err, c.RemoveBucket(ctx, bucket))
}
